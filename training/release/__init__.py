"""From a network to a published version, through the gates."""
