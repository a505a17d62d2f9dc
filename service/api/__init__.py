"""The HTTP API: endpoints, request bodies and response documents."""
