"""Decode steps in C++, compiled on first use; one call runs all layers.

build.py           finds a compiler, compiles kernels.cpp and caches the library
ctypes_structs.py  structs shared with C++
weights.py         weights in the layout of weight_layout.py, stored in huge_pages.py
engine.py          runs passes with the number of threads that thread_tuning.py selects
decode_step.py     the runtime of a batch: prefill and decode steps
threads.py         limits PyTorch's own threads
"""
