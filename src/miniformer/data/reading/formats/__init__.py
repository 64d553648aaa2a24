"""Formats of data files beside JSON lines and plain text."""
