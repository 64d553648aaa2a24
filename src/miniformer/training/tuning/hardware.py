"""What the machine can do, measured: the speed of its matrix products."""

from __future__ import annotations

import time
from pathlib import Path

import torch

_BENCHMARK_SECONDS = 0.15  # for one measurement, about
_MATRIX_SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)  # sides of the matrices
_REPEATS = 4  # products of one size; a first one is slower than others
_MIN_BF16_SPEEDUP = 1.2  # how much faster than float32 bfloat16 must be to be worth its rounding
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "amx_tile"}  # of a CPU, as Linux names them

_peak_flops_cache: dict[tuple[str, torch.dtype, int], float] = {}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's matrix-product peak in FLOP/s: the best of some products of square matrices.

    Takes about 0.15 s, and a few hundred MB on a GPU; later calls in the process cost nothing. No
    random state of torch's is touched.

    Args:
        device: where.
        dtype: of the matrices; float16 on a CPU, which few can compute, is measured as float32.
    """
    if device.type == "cpu" and dtype == torch.float16:
        dtype = torch.float32
    key = (device.type, dtype, torch.get_num_threads())
    if key not in _peak_flops_cache:
        _peak_flops_cache[key] = _benchmark_matmul(device, dtype)
    return _peak_flops_cache[key]


def _benchmark_matmul(device: torch.device, dtype: torch.dtype) -> float:
    best = 0.0
    first = torch.ones(_MATRIX_SIZES[0], _MATRIX_SIZES[0], device=device, dtype=dtype)
    torch.mm(first, first)  # a GPU's library takes up to seconds to begin
    _synchronize(device)
    start = time.perf_counter()
    generator = torch.Generator(device).manual_seed(0)  # zeros would be faster than real data
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for size in _MATRIX_SIZES:
            work = 2.0 * size**3
            try:
                a, b = (
                    torch.rand(size, size, generator=generator, device=device, dtype=dtype)
                    for _ in range(2)
                )
                for _ in range(_REPEATS):
                    left = _BENCHMARK_SECONDS - (time.perf_counter() - start)
                    if best and work / best > left:
                        return best
                    best = max(best, work / _time_matmul(a, b))
            except torch.OutOfMemoryError:
                break  # smaller ones will have to do
    return best


def _time_matmul(a: torch.Tensor, b: torch.Tensor) -> float:
    """Time of one product, [N, N] x [N, N]."""
    _synchronize(a.device)
    start = time.perf_counter()
    torch.mm(a, b)
    _synchronize(a.device)
    return max(time.perf_counter() - start, 1e-9)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_fast_bf16(device_type: str) -> bool:
    """Whether bfloat16 is worth it here: computed by the hardware, and faster than float32.

    Args:
        device_type: cpu, cuda or mps; on a CPU it is measured, if its flags say that it has it.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu" or not _cpu_has_bf16():
        return False
    device = torch.device("cpu")
    return peak_flops(device, torch.bfloat16) >= _MIN_BF16_SPEEDUP * peak_flops(
        device, torch.float32
    )


def _cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for products of bfloat16."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known = [check for name in checks if (check := getattr(torch.cpu, name, None)) is not None]
    if any(check() for check in known):
        return True
    return not known and not _BF16_FLAGS.isdisjoint(_cpu_flags())


def _cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Flags of the first CPU; none where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return set(next(flags, "").split())
