"""Measures of a published graph, from image bytes to tables."""
