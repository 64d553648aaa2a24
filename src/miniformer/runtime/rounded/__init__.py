"""Linear layers for inference with weights of fewer bits, and with inputs rounded in the product.

linear.py  a linear layer whose product is that of the kernels
model.py   a copy of a model with such layers, which shares all else with it
"""
