"""Sends requests and records how each ended, in processes of their own."""
