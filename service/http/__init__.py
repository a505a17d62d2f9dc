"""The wire: connections, request heads, deadlines, errors. Knows no route and no model."""
