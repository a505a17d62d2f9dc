"""The parts of a request one by one: `python -m benchmarks.micro`."""
