"""The process: logs, metrics, threads, cores, version."""
