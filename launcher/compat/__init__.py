"""Commands that other projects' manifests already use, with the launcher's care behind them."""
