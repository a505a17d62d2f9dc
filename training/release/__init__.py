"""From a network through the gates to a published version."""
