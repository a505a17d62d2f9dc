"""Process-wide parts: logs, metrics, threads, signals and CPU cores."""
