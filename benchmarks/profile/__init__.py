"""What a request costs, by thread and by stage: `python -m benchmarks.profile`."""
