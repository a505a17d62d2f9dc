"""Process and machine: distributed runs, signals, randomness, memory, files."""
