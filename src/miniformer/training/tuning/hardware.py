"""Hardware capabilities: peak FLOP/s of matrix products, bfloat16 support."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from miniformer.model.ops.products import matmul

_BENCHMARK_SECONDS = 0.15  # approximate duration of a benchmark
_MATRIX_SIZES = (128, 256, 512, 1024, 2048, 4096, 8192)  # rows and columns
_REPEATS = 4  # products of one size; the first is slower
_MIN_BF16_SPEEDUP = 1.2  # over float32, for bfloat16 to be worth its rounding
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "amx_tile"}  # of a CPU, in /proc/cpuinfo

_peak_flops_cache: dict[tuple[str, torch.dtype, int], float] = {}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of the device: the best of several products of square matrices.

    The benchmark takes about 0.15 s, and a few hundred MB on a GPU. The result is cached in the
    process. The random state of torch does not change.

    Args:
        device: the device.
        dtype: type of the matrices; float16 on a CPU is measured as float32.
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
    matmul(first, first)  # the library of a GPU takes up to seconds to load
    _synchronize(device)
    start = time.perf_counter()
    generator = torch.Generator(device).manual_seed(0)  # products of zeros are faster
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for size in _MATRIX_SIZES:
            work = 2.0 * size**3
            try:
                a, b = (
                    torch.rand(size, size, generator=generator, device=device, dtype=dtype)
                    for _ in range(2)
                )
                for _ in range(_REPEATS):
                    remaining = _BENCHMARK_SECONDS - (time.perf_counter() - start)
                    if best and work / best > remaining:
                        return best
                    best = max(best, work / _time_matmul(a, b))
            except torch.OutOfMemoryError:
                break  # the smaller sizes suffice
    return best


def _time_matmul(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of one product, [N, N] x [N, N]."""
    _synchronize(a.device)
    start = time.perf_counter()
    matmul(a, b)
    _synchronize(a.device)
    return max(time.perf_counter() - start, 1e-9)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_fast_bf16(device_type: str) -> bool:
    """Returns whether the hardware computes bfloat16 faster than float32.

    Args:
        device_type: cpu, cuda or mps; a CPU with bfloat16 instructions is benchmarked.
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
    """Returns whether the CPU has instructions for bfloat16 products."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    available = [check for name in checks if (check := getattr(torch.cpu, name, None)) is not None]
    if any(check() for check in available):
        return True
    return not available and not _BF16_FLAGS.isdisjoint(cpu_flags())


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Flags of the first CPU; empty without the file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return set(next(flags, "").split())


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Context with this number of threads for an operation on the CPU; None: as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_threads(threads: int) -> str:
    """Why a run has this number of threads, with a better one if cores are in use by others."""
    return "of OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ else _compare_with_cores(threads)


def _compare_with_cores(threads: int) -> str:
    cores, load = available_cores(), 0.0
    with contextlib.suppress(OSError, AttributeError):  # not on every system
        load = os.getloadavg()[0]
    free = max(1, round(cores - load))
    reason = f"torch's default, for {cores:g} cores"
    if threads <= free:
        return reason
    busy = f"; other processes use {min(load, cores):.1f} of them" if load >= 1 else ""
    return f"{reason}{busy}; --threads {free} may be faster"


def available_cores(limits: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Cores that this process may use: those of its affinity, or fewer in a container."""
    get_affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(get_affinity(0)) if get_affinity else os.cpu_count() or 1)
    with contextlib.suppress(OSError, ValueError):
        quota, period = limits.read_text(encoding="utf-8").split()
        cores = min(cores, float(quota) / float(period))
    return cores
