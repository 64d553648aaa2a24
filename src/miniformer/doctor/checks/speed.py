"""Speed of a model against the measured limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from miniformer.config import GenerationConfig
from miniformer.doctor.checks.cache import require_decoding
from miniformer.doctor.inputs import ModelInputs
from miniformer.doctor.outcome import NotApplicable, Note
from miniformer.generation.inference import eval_mode
from miniformer.generation.runtime import make_runtime
from miniformer.training.tuning.hardware import peak_flops

_ROUNDS = 3
_STEPS = 16
_ROWS, _LENGTH = 8, 128
_BANDWIDTH_BYTES = 2**28  # more than the caches of a processor


def measure_speed(model: Any) -> list[str]:
    """Speed is compared with that of matrix products and of memory."""
    inputs = ModelInputs(model)
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return [Note(line) for line in (*_forward(inputs), *_decoding(inputs))]


def memory_bandwidth(device: torch.device) -> float:
    """Bytes per second that a sum over a large array reads: the best of several sums."""
    array = torch.ones(_BANDWIDTH_BYTES // 4, device=device)
    return _BANDWIDTH_BYTES / min(_seconds(array.sum, device) for _ in range(_ROUNDS))


def _forward(inputs: ModelInputs) -> list[str]:
    length = min(_LENGTH, inputs.config.max_seq_len)
    x = inputs.inputs(_ROWS, length)
    target = inputs.ids(_ROWS, length) if inputs.seq2seq else None
    seconds = statistics.median(
        _seconds(lambda: inputs.call(x, target=target), inputs.device) for _ in range(_ROUNDS)
    )
    flops = inputs.config.flops_per_token(length, seq2seq=inputs.seq2seq) * _ROWS * length
    share = flops / seconds / peak_flops(inputs.device, inputs.dtype)
    return [
        f"forward pass of {_ROWS} x {length}: {_ROWS * length / seconds:,.0f} positions/s, "
        f"{share:.0%} of the speed of matrix products"
    ]


def _decoding(inputs: ModelInputs) -> list[str]:
    try:
        require_decoding(inputs)
    except NotApplicable:
        return []
    steps, memory = min(_STEPS, inputs.config.max_seq_len - 1), []
    if steps < 1 or inputs.reads_vectors:
        return []
    if inputs.seq2seq:
        memory = [inputs.model.encode(inputs.inputs(1, inputs.source_length), None)]
    runtime = make_runtime(inputs.model, memory, GenerationConfig())
    runtime.prefill(inputs.ids(1, 1), None, steps)
    token = inputs.ids(1, 1)[0]
    seconds = statistics.median(
        _seconds(lambda: runtime.step(token), inputs.device) for _ in range(steps)
    )
    size = sum(x.numel() * x.element_size() for x in inputs.model.parameters())
    share = size / seconds / memory_bandwidth(inputs.device)
    return [
        f"decoding of one text: {1 / seconds:,.0f} tokens/s; weights are read at {share:.0%} of "
        "the memory bandwidth (more than 100 %: they stay in the caches)"
    ]


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
