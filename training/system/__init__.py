"""The process: distributed runs, signals, randomness, files."""
