"""What `convserve-train` does, one file a command."""
