"""Benchmark of speculative decoding against plain decoding of the same prompts."""

from __future__ import annotations

import time
from typing import Any

from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config.command_line import resolve_model
from miniformer.generation.layer_draft import PREFIX as LAYERS
from miniformer.generation.speculative import Speculation


def benchmark_speculation(
    pipeline: Pipeline, draft: str, prompts: list[str], options: dict[str, Any]
) -> tuple[list[str], str]:
    """Generates answers with a draft, and reports the speedup over plain decoding.

    Args:
        pipeline: the model.
        draft: directory of a smaller model, lookup, or layers:N.
        prompts: texts.
        options: fields of `GenerationConfig`.

    Returns:
        An answer for each prompt, and a report line. The comparison generates all answers again
        without a draft, one prompt at a time.
    """
    is_model = draft != "lookup" and not draft.startswith(LAYERS)
    speculation = Speculation.from_draft(load(resolve_model(draft)) if is_model else draft)
    assert speculation is not None
    start = time.perf_counter()
    drafted = pipeline.generate_outputs(prompts, draft=speculation, **options)
    drafted_seconds = time.perf_counter() - start
    start = time.perf_counter()
    plain = [out for prompt in prompts for out in pipeline.generate_outputs([prompt], **options)]
    plain_seconds = time.perf_counter() - start
    rates = [  # tokens/s, since sampled texts differ in length
        sum(len(output.logprobs) for _, output in outputs) / seconds
        for outputs, seconds in ((drafted, drafted_seconds), (plain, plain_seconds))
    ]
    ratio = rates[0] / rates[1]
    verdict = f"{ratio:.2f} times as fast" if ratio >= 1 else f"slower: {ratio:.2f} times as fast"
    copies = len(drafted) // len(prompts)
    return [text for text, _ in drafted[::copies]], (
        f"speculation: {speculation.stats}; {rates[0]:,.0f} tokens/s, {verdict} as without"
    )
