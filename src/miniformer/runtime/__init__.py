"""Decoding runtimes: C++ kernels for CPUs and CUDA graphs."""
