"""Versions, hardware and speed of this machine, without names of users or paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from miniformer.training.tuning.hardware import cpu_flags, peak_flops

PACKAGES = (
    "miniformer", "torch", "lightning", "numpy", "tokenizers", "safetensors", "transformers",
    "onnx", "onnxscript", "onnxruntime", "gguf", "fastapi", "datasets", "torchmetrics",
)  # fmt: skip
# Instruction sets that the kernels, or those of torch, choose by.
INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16",
    "i8mm",
)  # fmt: skip
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MINIFORMER_NATIVE")


def environment() -> dict[str, str]:
    """Versions of packages and facts about the hardware, for a bug report."""
    flags = cpu_flags()
    values = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{_device()}, {_device_name()}",
        "cores": str(os.cpu_count()),
        "instructions": " ".join(name for name in INSTRUCTIONS if name in flags) or "unknown",
        "cuda": torch.version.cuda or "none",
    }
    values |= {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    for package in PACKAGES:
        try:
            values[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            values[package] = "not installed"
    return values


def speed() -> dict[str, str]:
    """Device and speed of matrix products."""
    device = _device()
    lines = {f"torch {torch.__version__} on {device}": _device_name()}
    for dtype in (torch.float32, torch.bfloat16):
        lines[f"matrix products in {dtype}"] = f"{peak_flops(device, dtype) / 1e9:,.0f} GFLOP/s"
    return lines


def _device_name() -> str:
    if _device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
