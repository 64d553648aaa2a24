"""Tokenizers and their training."""
