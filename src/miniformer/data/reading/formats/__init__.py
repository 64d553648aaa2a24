"""Formats of data files other than JSON lines and plain text."""
