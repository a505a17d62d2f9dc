"""Compares results of load tests: what changed, and whether beyond noise."""

from convserve.loadtest.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
