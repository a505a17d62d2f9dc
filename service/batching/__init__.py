"""One queue, batches, and the lanes that run them."""
