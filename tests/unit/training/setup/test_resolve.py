"""Settings of a run that need neither its data nor its model."""

import pytest
import torch

from miniformer.config.train_settings import HardwareSettings
from miniformer.training.setup import resolve
from miniformer.training.setup.resolve import resolve_device_type, resolve_precision


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "device_type"),
    [
        ("auto", True, True, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
    ],
)
def test_resolve_device_type_takes_the_fastest(monkeypatch, accelerator, cuda, mps, device_type):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device_type(HardwareSettings(accelerator=accelerator)) == device_type


@pytest.mark.catches("precision_is_float32_unless_given")
@pytest.mark.parametrize(
    ("given", "fast", "precision"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "float32"),
        ("bf16", False, "bf16"),
        ("float32", True, "float32"),
    ],
)
def test_resolve_precision_is_bf16_where_it_is_fast(monkeypatch, given, fast, precision):
    monkeypatch.setattr(resolve, "has_fast_bf16", lambda device_type: fast)
    assert resolve_precision(HardwareSettings(precision=given), "cpu") == precision
