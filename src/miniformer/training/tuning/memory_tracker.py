"""How much memory a process has, had at most, and needs for a step.

On a GPU that is the memory of torch's tensors there; elsewhere what the process has of the
machine's memory (its resident set), interpreter and libraries included.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from miniformer.model.ops.allocation_tracker import AllocationTracker

_PROC_STATUS, _PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Where the system does not tell what steps take, their tensors do, and half of that again for the
# holes between them and for what operations use inside: a guess.
_OVERHEAD_FACTOR = 1.5


def peak_tensor_bytes(step: Callable[[], object]) -> int:
    """The most bytes of tensors made by `step()` that are there at one time.

    Forward and backward pass count, also what is computed again for a checkpoint. What a kernel
    uses inside does not, nor do holes between the tensors: see `growth`.
    """
    births = AllocationTracker()
    with births:
        step()
    return births.peak_bytes


def current_memory(device: torch.device) -> int:
    """Bytes that the process has now; 0 where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _read_proc_status("VmRSS") or _max_rss()


def peak_memory(device: torch.device) -> int:
    """Bytes that the process had at most, since `forget_most` where that is known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _read_proc_status("VmHWM") or _max_rss()


def reset_peak_memory(device: torch.device) -> bool:
    """Gives memory that is free back to the system, and begins the count of `most_resident` anew.

    Returns:
        Whether it begins anew: on Linux and on NVIDIA's GPUs.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _PROC_CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def step_memory_growth(
    step: Callable[[], object], device: torch.device, *, num_steps: int = 3
) -> int:
    """Bytes that steps need beside what is there before them.

    They are what the process really takes: on a CPU, tensors that come and go leave holes, which
    may take as much again as the tensors, and the more the longer it goes on.

    Args:
        step: leaves behind what it keeps in training, such as gradients.
        device: where it computes.
        times: steps taken.
    """
    known, before = reset_peak_memory(device), current_memory(device)
    tensors = 0 if device.type == "cuda" else peak_tensor_bytes(step)
    for _ in range(num_steps if device.type == "cuda" else num_steps - 1):
        step()
    if not known:
        return int(_OVERHEAD_FACTOR * tensors)
    return max(tensors, peak_memory(device) - before)


def available_memory(device: torch.device) -> int | None:
    """Bytes that the process can still have, as far as it is told; None: it is not."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    left = [_read_proc_field(Path("/proc/meminfo"), "MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # a container's own limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        left.append(limit - int((group / "memory.current").read_text(encoding="ascii")))
    return min((each for each in left if each is not None), default=None)


def _read_proc_status(field: str) -> int | None:
    return _read_proc_field(_PROC_STATUS, field)


def _read_proc_field(path: Path, field: str) -> int | None:
    """A line `name: 123 kB` of a file of the kernel's, in bytes."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None
    )


def _max_rss() -> int:
    """The process's largest resident set, of all its life; 0 where nobody tells."""
    if os.name != "posix":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
