"""General helpers: atomic files, JSON lines, output streams, units. Imports no torch."""
