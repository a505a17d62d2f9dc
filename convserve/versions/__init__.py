"""Compares versions, and publishes them again with changes to their manifest."""
