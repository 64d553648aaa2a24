"""torch.compile for the layers of a run, and when it pays back what it costs."""

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
from miniformer.training.setup.prepare import RunSetup, resolve_device_type, resolve_precision

_TIMED_STEPS = 5  # measured before and after


def compile_layers(run: RunSetup, max_steps: int | None = None) -> str:
    """Compiles each layer in place; returns a line about what it cost and what it saves.

    All layers of a shape share their compiled code, so that a deep model takes no longer. A pass
    over batches of the run is measured before and after; random numbers and weights stay.

    Args:
        run: what is trained.
        max_steps: of the run; None: not known.
    """
    batches = list(islice(iter(run.data.train_dataloader()), 3))
    one_pass = _make_step_fn(run, batches)
    with torch.random.fork_rng():
        before = _median_seconds(one_pass)
        for layer in run.model.modules():
            if isinstance(layer, EncoderLayer | DecoderLayer):
                layer.compile()
        began = time.perf_counter()
        for index in range(len(batches)):
            one_pass(index)
        after = _median_seconds(one_pass)
    cost = time.perf_counter() - began
    run.model.zero_grad(set_to_none=True)
    return format_compile_summary(
        cost, before, after, run.config.accumulate_grad_batches, max_steps
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
        cost: seconds that compiling took.
        before, after: seconds of a batch.
        accumulate: batches in an optimiser step.
        max_steps: of the run; None: not known.
    """
    line = f"compiled in {compile_seconds:.1f} s; a batch takes {1e3 * compiled_seconds:.1f} ms, {1e3 * eager_seconds:.1f} before"
    if compiled_seconds >= eager_seconds:
        return f"{line}: it does not pay back here; leave out --compile"
    steps = math.ceil(
        compile_seconds / ((eager_seconds - compiled_seconds) * accumulate_grad_batches)
    )
    line = f"{line}: it pays back after {steps:,} steps"
    return line if max_steps is None else f"{line} of {max_steps:,}"


def _make_step_fn(run: RunSetup, batches: list[Any]) -> Callable[[int], None]:
    """Forward and backward over a batch, on the device and in the precision of the run."""
    device = torch.device(resolve_device_type(run.config))
    objective = LossModule(run.model.to(device), run.task)
    bf16 = resolve_precision(run.config) == "bf16"
    moved = [
        {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in each.items()}
        for each in batches
    ]

    def run_batch(index: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = objective(moved[index % len(moved)])
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run_batch


def _median_seconds(step_fn: Callable[[int], None]) -> float:
    times = []
    for index in range(_TIMED_STEPS):
        began = time.perf_counter()
        step_fn(index)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
