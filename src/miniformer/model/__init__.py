"""Transformer models and their components.

Reading order: `transformer`, `stack`, `layers`, `attention`, `masks`, then the other files. The
folder has more than 12 files because each component is one file.
"""
