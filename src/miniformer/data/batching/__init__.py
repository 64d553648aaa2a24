"""Grouping of examples into batches."""
