"""Finds the pictures of each kind of data set: folders, lists and well-known sets."""
