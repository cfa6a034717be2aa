"""Engines that a TOML file describes: its schema, the placeholders in it, and the plan that comes of it."""
