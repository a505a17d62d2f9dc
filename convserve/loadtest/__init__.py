"""Load test: sends pictures to a server at a given rate or from a number of clients."""
