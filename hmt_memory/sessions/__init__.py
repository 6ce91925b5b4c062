"""Everything that lasts: stores, sessions, corpora, their exports and their checks."""
