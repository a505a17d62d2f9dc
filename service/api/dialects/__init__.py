"""What clients speak: one file for each protocol."""
