"""The commands: turns flags, LAUNCHER_* variables and TOML into Settings, and prints each command's output."""
