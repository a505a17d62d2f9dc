"""The front door: what people type and import."""
