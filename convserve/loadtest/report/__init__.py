"""The report of a load test: one HTML file that needs nothing else."""

from convserve.loadtest.report.page import write_report

__all__ = ["write_report"]
