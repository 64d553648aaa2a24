"""Fit of the wide head to the training data, with a file for each kind of features."""
