"""Pictures: found, checked, split, turned into batches."""
