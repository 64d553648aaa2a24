"""Whether speculation pays: the same prompts with it and without it, by the clock."""

from __future__ import annotations

import time
from typing import Any

from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.generation.speculative import Speculation


def benchmark_speculation(
    pipeline: Pipeline, draft: str, prompts: list[str], options: dict[str, Any]
) -> tuple[list[str], str]:
    """Answers with guesses, and a line that says what these were worth.

    Args:
        pipeline: the model.
        draft: a smaller model's directory, or lookup.
        prompts: texts.
        options: fields of `GenerationConfig`.

    Returns:
        An answer for each prompt, and the verdict, which takes as long as answering once more, a
        prompt at a time.
    """
    speculation = Speculation(None if draft == "lookup" else load(draft).model)
    began = time.perf_counter()
    found = pipeline.generate_outputs(prompts, draft=speculation, **options)
    taken = time.perf_counter() - began
    began = time.perf_counter()
    plain = [each for prompt in prompts for each in pipeline.generate_outputs([prompt], **options)]
    usual = time.perf_counter() - began
    # Sampled texts differ in length.
    rates = [
        sum(len(written.logprobs) for _, written in texts) / seconds
        for texts, seconds in ((found, taken), (plain, usual))
    ]
    ratio = rates[0] / rates[1]
    verdict = f"{ratio:.2f} times as fast" if ratio >= 1 else f"slower: {ratio:.2f} times as fast"
    copies = len(found) // len(prompts)
    return [text for text, _ in found[::copies]], (
        f"speculation: {speculation.stats}; {rates[0]:,.0f} tokens/s, {verdict} as without"
    )
