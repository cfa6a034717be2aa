"""Engines that a TOML file describes: its schema, its placeholders, and the plan."""
