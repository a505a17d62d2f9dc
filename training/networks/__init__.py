"""Networks by name, their weights, and the graph around them."""
