"""Decoding steps in C++: one call for all layers, compiled on first use.

build.py         finds a compiler, compiles kernels.cpp, keeps the result
structures.py    what Python and C++ tell each other, field for field
engine.py        a model's weights as the kernels read them, and a step
threads.py       PyTorch's own threads, kept out of the way
"""
