"""HTTP itself: connections, request heads, deadlines and errors. Knows no route and no model."""
