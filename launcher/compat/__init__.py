"""Commands that other projects' manifests already call, implemented on top of the launcher."""
