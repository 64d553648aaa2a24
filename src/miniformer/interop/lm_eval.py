"""Adapter for EleutherAI's lm-evaluation-harness; `pip install "miniformer[lm-eval]"`.

    python -m miniformer.interop.lm_eval --model miniformer \\
        --model_args pretrained=runs/demo/best --tasks hellaswag

or, in Python, `lm_eval.simple_evaluate(model=MiniformerLM("runs/demo/best"), tasks=["hellaswag"])`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from rich.progress import track

from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config import UserError
from miniformer.config.command_line import command_context
from miniformer.model.transformer import Transformer

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError:
    _MISSING = 'lm_eval is not installed; pip install "miniformer[lm-eval]"'
    if __name__ == "__main__":
        print(f"miniformer: error: {_MISSING}", file=sys.stderr)
        sys.exit(2)
    raise ModuleNotFoundError(_MISSING) from None

_CHUNK_SIZE = 64  # requests per step of the progress bar
_DEFAULT_MAX_NEW_TOKENS = 256  # the default of the harness
_SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@register_model("miniformer")
class MiniformerLM(LM):  # type: ignore[misc]
    """The harness's interface of a model.

    Args:
        pretrained: a model directory, a name on the hub, or a `Pipeline`; it must generate text.
        device: torch device; None: a GPU if there is one.
        stride: for texts longer than `max_seq_len`; see `miniformer.tasks.common.scoring`.
        seed: seed of tasks that sample.
        batch_size, max_batch_size: ignored; batches are sized by tokens.
    """

    def __init__(
        self,
        pretrained: str | Pipeline,
        device: str | None = None,
        stride: int | None = None,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        self.pipeline = load(pretrained) if isinstance(pretrained, str) else pretrained
        self.pipeline.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.stride, self.seed = stride, seed
        self.pipeline.score([])  # raises if the model generates no text

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of a continuation, and whether it is the greedy one.

        Trailing spaces of a context move to the continuation, as tokenizers attach them to words.
        """
        pairs = []
        for request in requests:
            context, text = request.args
            stripped = context.rstrip(" ")
            pairs.append((stripped, context[len(stripped) :] + text))
        scored = self._score(pairs, disable_tqdm)
        return [(text.total_logprob, all(text.is_greedy)) for text in scored]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts of any length."""
        pairs = [("", request.args[0]) for request in requests]
        return [text.total_logprob for text in self._score(pairs, disable_tqdm)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generates text up to a stop string; contexts that are too long lose their beginning."""
        by_options = defaultdict(list)
        for index, request in enumerate(requests):
            by_options[json.dumps(request.args[1], sort_keys=True)].append(index)
        chunks = [
            (options, indices[first : first + _CHUNK_SIZE])
            for options, indices in by_options.items()
            for first in range(0, len(indices), _CHUNK_SIZE)
        ]
        outputs: dict[int, str] = {}
        for options, indices in track(chunks, "generating", disable=disable_tqdm):
            contexts = [requests[index].args[0] for index in indices]
            texts = self.pipeline.generate(
                contexts, **self._generation_options(json.loads(options))
            )
            outputs |= zip(indices, texts, strict=True)
        return [outputs[index] for index in range(len(requests))]

    def _score(self, requests: list[tuple[str, str]], disable_tqdm: bool) -> list[Any]:
        scored: list[Any] = []
        for first in track(range(0, len(requests), _CHUNK_SIZE), "scoring", disable=disable_tqdm):
            prompts, texts = zip(*requests[first : first + _CHUNK_SIZE], strict=True)
            scored += self.pipeline.score(texts, prompts, stride=self.stride)
        return scored

    def _generation_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Converts the harness's generation options."""
        stop = options.pop("until", [])
        stop_strings = [stop] if isinstance(stop, str) else [text for text in stop if text]
        config = self.pipeline.model.config
        max_new_tokens = options.pop("max_gen_toks", _DEFAULT_MAX_NEW_TOKENS)
        converted = {
            "stop_strings": stop_strings or None,
            "max_new_tokens": min(max_new_tokens, config.max_seq_len - 1),
            "context_shift": isinstance(self.pipeline.model, Transformer),
            "temperature": 0.0,
        }
        if options.pop("do_sample", options.get("temperature", 0) > 0):
            converted |= {"temperature": 1.0, "seed": self.seed}
            converted |= {name: options[name] for name in _SAMPLING_OPTIONS if name in options}
        unknown = sorted(set(options) - set(_SAMPLING_OPTIONS))
        if unknown:
            raise UserError(f"generation_kwargs of the task: {unknown[0]!r} is not supported")
        return converted


def main() -> int:
    """Runs the harness's command with the adapter registered; returns its exit code."""
    from lm_eval.__main__ import cli_evaluate

    with command_context() as command:
        command.code = cli_evaluate() or 0
    return command.code


if __name__ == "__main__":
    sys.exit(main())
