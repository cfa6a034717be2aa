"""The commands: flags, LAUNCHER_* variables and TOML become Settings, and what each command prints."""
