"""The commands of `convserve-train`, one file each."""
