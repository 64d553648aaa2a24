"""Decoding algorithms.

They depend only on the `Model` protocol in `loop.py`, so the models themselves can offer
`generate`.
"""
