"""Flags of commands: their parser errors in words for users, and descriptions of fields."""
