"""A model directory in EleutherAI's lm-evaluation-harness; `pip install "miniformer[lm-eval]"`.

    python -m miniformer.interop.lm_eval --model miniformer \\
        --model_args pretrained=runs/demo/best --tasks hellaswag

or, in Python, `lm_eval.simple_evaluate(model=Evaluated("runs/demo/best"), tasks=["hellaswag"])`.
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
from miniformer.config.command_line import run_guarded
from miniformer.model.transformer import Transformer

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError:
    _MISSING = 'the harness is missing; pip install "miniformer[lm-eval]"'
    if __name__ == "__main__":
        print(f"miniformer: error: {_MISSING}", file=sys.stderr)
        sys.exit(2)
    raise ModuleNotFoundError(_MISSING) from None

_CHUNK_SIZE = 64  # requests between two steps of the progress bar
_DEFAULT_MAX_NEW_TOKENS = (
    256  # tokens of an answer where a task says nothing, as the harness has it
)
_SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@register_model("miniformer")
class MiniformerLM(LM):  # type: ignore[misc]
    """What the harness asks of a model.

    Args:
        pretrained: a model directory, a name on the hub, or a `Pipeline`; one that writes text.
        device: where it computes; None: a GPU if there is one.
        stride: for texts longer than the model reads; see `miniformer.tasks.common.scoring`.
        seed: of the answers to tasks that sample.
        batch_size, max_batch_size: the harness passes them; batches here go by tokens.
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
        self.pipeline.score([])  # says so at once where the model writes no text

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of what goes on after a context, and whether it is the greedy answer.

        A context's last spaces are counted to what comes after it, where tokenizers have them.
        """
        asked = []
        for request in requests:
            context, text = request.args
            kept = context.rstrip(" ")
            asked.append((kept, context[len(kept) :] + text))
        return [
            (each.total_log_prob, all(each.is_greedy)) for each in self._score(asked, disable_tqdm)
        ]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, however long."""
        asked = [("", request.args[0]) for request in requests]
        return [each.total_log_prob for each in self._score(asked, disable_tqdm)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes up to a stop; of contexts that are too long the end is read."""
        alike = defaultdict(list)
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(number)
        chunks = [
            (options, numbers[first : first + _CHUNK_SIZE])
            for options, numbers in alike.items()
            for first in range(0, len(numbers), _CHUNK_SIZE)
        ]
        found: dict[int, str] = {}
        for options, some in track(chunks, "writing", disable=disable_tqdm):
            contexts = [requests[number].args[0] for number in some]
            texts = self.pipeline.generate(
                contexts, **self._generation_options(json.loads(options))
            )
            found |= zip(some, texts, strict=True)
        return [found[number] for number in range(len(requests))]

    def _score(self, requests: list[tuple[str, str]], disable_tqdm: bool) -> list[Any]:
        found: list[Any] = []
        for first in track(range(0, len(requests), _CHUNK_SIZE), "scoring", disable=disable_tqdm):
            some = requests[first : first + _CHUNK_SIZE]
            given, texts = zip(*some, strict=True)
            found += self.pipeline.score(texts, given, stride=self.stride)
        return found

    def _generation_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Ours for the harness's."""
        until = options.pop("until", [])
        config = self.pipeline.model.config
        new = options.pop("max_gen_toks", _DEFAULT_MAX_NEW_TOKENS)
        found = {
            "stop_strings": [until]
            if isinstance(until, str)
            else [stop for stop in until if stop] or None,
            "max_new_tokens": min(new, config.max_seq_len - 1),
            "context_shift": isinstance(self.pipeline.model, Transformer),
            "temperature": 0.0,
        }
        if options.pop("do_sample", options.get("temperature", 0) > 0):
            found |= {"temperature": 1.0, "seed": self.seed}
            found |= {name: options[name] for name in _SAMPLING_OPTIONS if name in options}
        unknown = sorted(set(options) - set(_SAMPLING_OPTIONS))
        if unknown:
            raise UserError(f"generation_kwargs of the task: {unknown[0]!r} is not known here")
        return found


def main() -> int:
    """The harness's own command, which now knows the model; returns its exit code."""
    from lm_eval.__main__ import cli_evaluate

    return run_guarded(lambda: cli_evaluate() or 0)


if __name__ == "__main__":
    sys.exit(main())
