"""Decoding steps in C++: one call for all layers, compiled on first use.

build.py         finds a compiler, compiles kernels.cpp, keeps the result
structures.py    what Python and C++ tell each other, field for field
weights.py       a model's weights as the kernels read them, in panels.py's order, memory.py's pages
engine.py        what takes the steps, with as many threads as tuning.py finds fastest
steps.py         steps and prompts of one cache
threads.py       PyTorch's own threads, kept out of the way
"""
