"""One connection: its parser, request heads, flow control, responses and TLS. Knows no application."""
