"""What is wrong with a data set, before hours are spent on it."""
