"""Today's answers to odd pictures and odd requests, to compare with after a change."""
