"""Grouping examples into batches."""
