"""From the bytes of an upload to pixels, and what is refused on the way."""
