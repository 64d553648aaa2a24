"""Runtimes that decode with a built model: C++ kernels on CPUs, CUDA graphs."""
