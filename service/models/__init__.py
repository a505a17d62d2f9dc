"""What is served: versions found, proven, adopted and run."""
