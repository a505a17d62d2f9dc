"""A regression table: the service's answers to odd pictures and odd requests."""
