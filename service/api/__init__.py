"""HTTP: the only part of the service, with `app` and the entry point, that knows it."""
