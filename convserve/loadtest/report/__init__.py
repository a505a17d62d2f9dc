"""The report of a load test: one HTML file that needs nothing else, and a few lines of text."""

from convserve.loadtest.report.page import write_report
from convserve.loadtest.report.text import summary_of

__all__ = ["summary_of", "write_report"]
