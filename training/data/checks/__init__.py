"""Checks a data set for problems before hours are spent on training."""
