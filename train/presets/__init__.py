"""Presets: one TOML file a preset."""
