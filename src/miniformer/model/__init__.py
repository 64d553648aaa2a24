"""The parts of a Transformer and the models assembled from them.

Reading order: `transformer`, `stack`, `layers`, `attention`, `masks`, then the other parts. The folder
has more than 12 files because each part is one file.
"""
