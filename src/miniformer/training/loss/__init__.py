"""Losses with several terms, and steps with several passes; not used by a plain loss."""
