"""torch.compile for the layers of a run, with its cost and its speedup."""

from __future__ import annotations

import itertools
import math
import statistics
import time

import torch

from miniformer.model.layers import DecoderLayer, EncoderLayer
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.tuning.dry_run import forward_backward

_TIMED_STEPS = 5  # before and after compilation
_COMPILING_STEPS = 3  # on different batches, whose shapes may differ


def compile_layers(run: RunSetup, accumulate_grad_batches: int, max_steps: int | None) -> str:
    """Compiles each layer in place; returns a line about the cost and the speedup.

    Layers of the same shape share compiled code. Steps on batches of the run are timed before and
    after; the random state and the weights do not change.

    Args:
        run: the run.
        accumulate_grad_batches: batches in an optimizer step.
        max_steps: optimizer steps of the run; None: unknown.
    """
    device = torch.device(run.device_type)
    autocast = torch.bfloat16 if run.precision == "bf16" else None
    model = run.model.to(device)
    batches = itertools.cycle(itertools.islice(run.data.train_dataloader(), _COMPILING_STEPS))

    def step_seconds() -> float:
        batch, start_time = next(batches), time.perf_counter()
        forward_backward(model, run.task, batch, autocast)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start_time

    with torch.random.fork_rng():
        eager_seconds = statistics.median(step_seconds() for _ in range(_TIMED_STEPS))
        for layer in model.modules():
            if isinstance(layer, EncoderLayer | DecoderLayer):
                layer.compile()
        compile_seconds = sum(step_seconds() for _ in range(_COMPILING_STEPS))
        compiled_seconds = statistics.median(step_seconds() for _ in range(_TIMED_STEPS))
    model.zero_grad(set_to_none=True)
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
