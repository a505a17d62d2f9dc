"""Finds pictures, checks and splits them, and turns them into batches."""
