"""Decoding algorithms.

They depend only on the `Model` protocol in `runtime.py`, so the models themselves can offer
`generate`. There are more than 12 files, since each has one algorithm or one of its inputs.
"""
