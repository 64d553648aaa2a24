"""Resolves the settings of a run that need neither its data nor its model."""

from __future__ import annotations

import torch

from miniformer.config.train_settings import HardwareSettings
from miniformer.training.tuning.hardware import has_fast_bf16


def resolve_device_type(hardware: HardwareSettings) -> str:
    """The device type of the accelerator: cpu, cuda or mps."""
    if hardware.accelerator != "auto":
        return hardware.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(hardware: HardwareSettings, device_type: str) -> str:
    """float32 or bf16: the given precision, or for auto the faster one."""
    if hardware.precision != "auto":
        return hardware.precision
    return "bf16" if has_fast_bf16(device_type) else "float32"
