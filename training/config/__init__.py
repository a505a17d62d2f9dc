"""The config of a training run, read from TOML files."""
