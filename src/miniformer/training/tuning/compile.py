"""torch.compile for the layers of a run, with its cost and its speedup."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from miniformer.model.layers import DecoderLayer, EncoderLayer
from miniformer.training.loss_module import LossModule
from miniformer.training.setup.prepare import RunSetup

_TIMED_STEPS = 5  # before and after compilation


def compile_layers(run: RunSetup, accumulate_grad_batches: int, max_steps: int | None) -> str:
    """Compiles each layer in place; returns a line about the cost and the speedup.

    Layers of the same shape share compiled code. Steps on batches of the run are timed before and
    after; the random state and the weights do not change.

    Args:
        run: the run.
        accumulate_grad_batches: batches in an optimizer step.
        max_steps: optimizer steps of the run; None: unknown.
    """
    batches = list(islice(iter(run.data.train_dataloader()), 3))
    step_fn = _make_step_fn(run, batches)
    with torch.random.fork_rng():
        eager_seconds = _median_seconds(step_fn)
        for layer in run.model.modules():
            if isinstance(layer, EncoderLayer | DecoderLayer):
                layer.compile()
        start_time = time.perf_counter()
        for index in range(len(batches)):
            step_fn(index)
        compiled_seconds = _median_seconds(step_fn)
    compile_seconds = time.perf_counter() - start_time
    run.model.zero_grad(set_to_none=True)
    return format_compile_summary(
        compile_seconds, eager_seconds, compiled_seconds, accumulate_grad_batches, max_steps
    )


def format_compile_summary(
    compile_seconds: float,
    eager_seconds: float,
    compiled_seconds: float,
    accumulate_grad_batches: int,
    max_steps: int | None,
) -> str:
    """The line of `compile_layers`.

    Args:
        compile_seconds: seconds of compilation.
        eager_seconds, compiled_seconds: seconds of a batch before and after.
        accumulate_grad_batches: batches in an optimizer step.
        max_steps: optimizer steps of the run; None: unknown.
    """
    line = (
        f"compiled in {compile_seconds:.1f} s; a batch takes {1e3 * compiled_seconds:.1f} ms, "
        f"{1e3 * eager_seconds:.1f} before"
    )
    if compiled_seconds >= eager_seconds:
        return f"{line}: it does not pay back here; leave out --compile"
    steps = math.ceil(
        compile_seconds / ((eager_seconds - compiled_seconds) * accumulate_grad_batches)
    )
    line = f"{line}: it pays back after {steps:,} steps"
    return line if max_steps is None else f"{line} of {max_steps:,}"


def _make_step_fn(run: RunSetup, batches: list[Any]) -> Callable[[int], None]:
    """Returns a forward and backward pass, on the device and in the precision of the run."""
    device = torch.device(run.device_type)
    loss_module = LossModule(run.model.to(device), run.task)
    bf16 = run.precision == "bf16"
    moved = [
        {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
        for batch in batches
    ]

    def run_batch(index: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = loss_module(moved[index % len(moved)])
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run_batch


def _median_seconds(step_fn: Callable[[int], None]) -> float:
    times = []
    for index in range(_TIMED_STEPS):
        start_time = time.perf_counter()
        step_fn(index)
        times.append(time.perf_counter() - start_time)
    return statistics.median(times)
