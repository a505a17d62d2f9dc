"""What a run is asked to do: TOML files, checked strictly."""
