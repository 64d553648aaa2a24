import resource, torch
def peak_flops(device, dtype): return 1e11
def memory_peak(device): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
def fast_bf16(kind): return False
