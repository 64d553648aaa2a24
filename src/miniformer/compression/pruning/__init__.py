"""Pruning: parts of a model are removed, or weights become zero.

`--remove`: records -> `importance` -> the least important parts -> `structure` -> a smaller model
`--sparsity`: records -> `sparsity` -> the same model with zeros
"""
