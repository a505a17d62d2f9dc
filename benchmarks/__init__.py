"""convserve beside the servers one could use instead, measured in one run; see README.md."""
