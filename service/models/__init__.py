"""Finds, verifies, loads and runs the versions that are served."""
