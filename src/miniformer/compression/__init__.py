"""Compression: smaller models, with what it costs.

model directory -> `quantize` -> a directory that stands alone -> `compare` with the first one
"""
