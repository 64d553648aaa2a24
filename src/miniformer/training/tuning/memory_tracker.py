"""Current, peak and available memory of the process, and the growth of a training step.

On a GPU it is the memory of torch's tensors. On a CPU it is the resident set of the process,
including interpreter and libraries.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from miniformer.model.ops.allocation_tracker import AllocationTracker
from miniformer.utils.memory import release_freed_memory

_PROC_STATUS, _PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Without a resettable peak of the system, an estimate: the tensors of a step, and half of that for
# fragmentation and for buffers of operations.
_OVERHEAD_FACTOR = 1.5


def peak_tensor_bytes(step: Callable[[], object]) -> int:
    """Peak bytes of the tensors that `step()` allocates.

    The forward and the backward pass count, with recomputed activations. Internal buffers of
    kernels and fragmentation do not count: see `step_memory_growth`.
    """
    tracker = AllocationTracker()
    with tracker:
        step()
    return tracker.peak_bytes


def current_memory(device: torch.device) -> int:
    """Memory of the process in bytes; 0: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _read_proc_status("VmRSS") or _max_rss()


def peak_memory(device: torch.device) -> int:
    """Peak memory of the process in bytes, since `reset_peak_memory` where that is supported."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _read_proc_status("VmHWM") or _max_rss()


def reset_peak_memory(device: torch.device) -> bool:
    """Releases free memory to the system and resets `peak_memory`.

    Returns:
        True if the peak was reset: on Linux and on NVIDIA GPUs.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    release_freed_memory()
    try:
        _PROC_CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def step_memory_growth(
    step: Callable[[], object], device: torch.device, *, num_steps: int = 3
) -> int:
    """Peak bytes of training steps beyond the memory in use before them.

    On a CPU, it includes fragmentation, which grows with the number of steps and may double the
    memory of the tensors.

    Args:
        step: runs a step and leaves its gradients.
        device: device of the step.
        num_steps: number of steps to run.
    """
    was_reset, before = reset_peak_memory(device), current_memory(device)
    tensors = 0 if device.type == "cuda" else peak_tensor_bytes(step)
    for _ in range(num_steps if device.type == "cuda" else num_steps - 1):
        step()
    if not was_reset:
        return int(_OVERHEAD_FACTOR * tensors)
    return max(tensors, peak_memory(device) - before)


def available_memory(device: torch.device) -> int | None:
    """Available memory of the device in bytes; None: unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = [_read_proc_field(Path("/proc/meminfo"), "MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # limit of the container
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        available.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return min((size for size in available if size is not None), default=None)


def _read_proc_status(field: str) -> int | None:
    return _read_proc_field(_PROC_STATUS, field)


def _read_proc_field(path: Path, field: str) -> int | None:
    """Reads a line `field: 123 kB` of a /proc file, in bytes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None
    )


def _max_rss() -> int:
    """Lifetime peak of the resident set in bytes; 0: unknown."""
    if os.name != "posix":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
