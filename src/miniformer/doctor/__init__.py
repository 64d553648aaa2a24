"""Examining a model: what it is, what computes it, and whether it sees what it must not."""
