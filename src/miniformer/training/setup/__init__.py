"""Preparation of a run: configuration, data, model, trainer."""
