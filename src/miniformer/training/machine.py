"""What this machine can do: its matrix-product peak, bfloat16, memory."""

from __future__ import annotations

import resource
import sys
import time
from functools import cache

import torch

_SIDE = {"cpu": 1024, "cuda": 4096, "mps": 2048}  # of the matrices that are multiplied
_ROUNDS = 5
_FASTER = 1.2  # that bfloat16 must be than float32, to be worth its rounding


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few large matrix products, measured once in a process."""
    return _measured(device.type, dtype, torch.get_num_threads())


@cache
def _measured(device_type: str, dtype: torch.dtype, threads: int) -> float:
    side = _SIDE.get(device_type, 1024)
    with torch.no_grad():  # zeros take as long, and no random numbers
        one = torch.zeros(side, side, dtype=dtype, device=device_type)
        best = float("inf")
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            _ = one @ one
            _wait(device_type)
            best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best


def _wait(device_type: str) -> None:
    if device_type == "cuda":
        torch.cuda.synchronize()
    elif device_type == "mps":
        torch.mps.synchronize()


def fast_bf16(device_type: str) -> bool:
    """Whether products in bfloat16 are of the hardware, and measured to be faster here."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu" or not _has_bf16():
        return False
    device = torch.device("cpu")
    return peak_flops(device, torch.bfloat16) >= _FASTER * peak_flops(device, torch.float32)


def _has_bf16() -> bool:
    """Whether the CPU has bfloat16 units: AVX512-BF16 or AMX."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in names)


def memory_peak(device: torch.device) -> int:
    """Bytes at most so far: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
