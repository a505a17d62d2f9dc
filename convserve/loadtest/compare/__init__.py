"""Compares results of load tests: `convserve loadtest compare A B`."""

from convserve.loadtest.compare.command import compare_command
from convserve.loadtest.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare", "compare_command"]
