"""The batch-cost curve: measured as the service runs, what follows from it, and how it is shown."""
