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
from miniformer.training.objective import Objective
from miniformer.training.preparation import Prepared, device_type, precision

_STEPS = 5  # measured before and after


def compile_layers(run: Prepared, max_steps: int | None = None) -> str:
    """Compiles each layer in place; returns a line about what it cost and what it saves.

    All layers of a shape share their compiled code, so that a deep model takes no longer. A pass
    over batches of the run is measured before and after; random numbers and weights stay.

    Args:
        run: what is trained.
        max_steps: of the run; None: not known.
    """
    batches = list(islice(iter(run.data.train_dataloader()), 3))
    one_pass = _pass_of(run, batches)
    with torch.random.fork_rng():
        before = _median(one_pass)
        for layer in run.model.modules():
            if isinstance(layer, EncoderLayer | DecoderLayer):
                layer.compile()
        began = time.perf_counter()
        for index in range(len(batches)):
            one_pass(index)
        after = _median(one_pass)
    cost = time.perf_counter() - began
    run.model.zero_grad(set_to_none=True)
    return told(cost, before, after, run.config.accumulate_grad_batches, max_steps)


def told(cost: float, before: float, after: float, accumulate: int, max_steps: int | None) -> str:
    """The line of `compile_layers`.

    Args:
        cost: seconds that compiling took.
        before, after: seconds of a batch.
        accumulate: batches in an optimiser step.
        max_steps: of the run; None: not known.
    """
    line = (
        f"compiled in {cost:.1f} s; a batch takes {1e3 * after:.1f} ms, {1e3 * before:.1f} before"
    )
    if after >= before:
        return f"{line}: it does not pay back here; leave out --compile"
    steps = math.ceil(cost / ((before - after) * accumulate))
    line = f"{line}: it pays back after {steps:,} steps"
    return line if max_steps is None else f"{line} of {max_steps:,}"


def _pass_of(run: Prepared, batches: list[Any]) -> Callable[[int], None]:
    """Forward and backward over a batch, on the device and in the precision of the run."""
    device = torch.device(device_type(run.config))
    objective = Objective(run.model.to(device), run.task)
    bf16 = precision(run.config) == "bf16"
    moved = [
        {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in each.items()}
        for each in batches
    ]

    def one_pass(index: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = objective(moved[index % len(moved)])
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return one_pass


def _median(one_pass: Callable[[int], None]) -> float:
    times = []
    for index in range(_STEPS):
        began = time.perf_counter()
        one_pass(index)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
