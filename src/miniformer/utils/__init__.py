"""Helpers that know nothing of models: atomic files, output streams. Imports no torch."""
