"""Runs a load test: trials, profiles, and what they found."""
