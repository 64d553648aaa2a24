"""Decoding algorithms.

They know a model only as the protocol in `generate.py`, so any model that keeps to it can be
decoded, and the models can offer `generate` themselves.
"""
