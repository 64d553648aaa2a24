"""The destination `gguf`: a file for llama.cpp and programs built on it, such as Ollama."""

from __future__ import annotations

import importlib.util
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from miniformer.config import UserError
from miniformer.config.command_line import miniformer_command
from miniformer.exporters.destination import destination
from miniformer.exporters.source import Source, read_source
from miniformer.utils.atomic import atomic_path

_RUNTIME = "llama_cpp"
_INSTALL = "pip install llama-cpp-python"
_TOKENS, _NEW_TOKENS = 48, 16  # of the comparison
# A greedy token may differ where two logits are nearly equal.
_MARGIN = 1e-3
# A larger difference is an error. GELU of llama.cpp, a table of float16, differs by less.
_LIMIT = 0.02
_NOT_COMPARED = "not compared with the model (--no-verify)"


@destination(
    "language models, encoders and T5 that llama.cpp has, see docs/export.md",
    runtime="llama.cpp",
    extra="gguf",
    packages=("gguf",),
)
def export_gguf(
    directory: Path,
    out: str,
    *,
    weights: str = "f16",
    tokenizer: bool = True,
    verify: bool = True,
) -> str:
    """Writes a model as a GGUF file for llama.cpp."""
    from miniformer.interop.gguf.write import write_gguf
    from miniformer.interop.hf.export import export_source

    path = Path(out)
    if path.suffix != ".gguf":
        path = path / "model.gguf"
    if path.exists():
        raise UserError(f"{path}: exists; name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written: {error.strerror}") from None
    source = export_source(directory)
    with atomic_path(path) as temporary:
        written = write_gguf(
            source, temporary, name=path.stem, weights=weights, tokenizer=tokenizer
        )
        compared = _verify(directory, temporary, weights) if verify else _NOT_COMPARED
    lines = [
        f"written to {path}: {written.architecture}, {written.n_tensors} tensors, "
        f"{written.n_bytes / 1e6:,.1f} MB"
    ]
    if source.seq2seq is False and not source.config.causal and source.config.head != "linear":
        lines.append("the head is left out: llama.cpp has no masked language models")
    lines.append(compared)
    lines.append(f"run it: llama-cli -m {shlex.quote(str(path))}; convert back: "
                 f"{miniformer_command()} import {shlex.quote(str(path))} DIRECTORY")  # fmt: skip
    return "\n".join(lines)


def _verify(directory: Path, path: Path, weights: str) -> str:
    """Compares a file with its model if llama.cpp is installed; a sentence.

    Raises:
        UserError: the outputs of a file of f32 are others.
    """
    if importlib.util.find_spec(_RUNTIME) is None:
        return f"not compared with the model: {_RUNTIME} is missing; {_INSTALL}"
    difference, text = compare(read_source(directory), path)
    if weights == "f32" and not difference <= _LIMIT:
        raise UserError(
            f"{text}; nothing is written. Report it, or write the file with --no-verify"
        )
    return text


def compare(source: Source, path: Path) -> tuple[float, str]:
    """Compares a file with its model in llama.cpp.

    Returns:
        The largest difference relative to the largest output, and a sentence.
    """
    from miniformer.exporters.llama_cpp import LlamaCpp

    config, dice = source.config, random.Random(0)
    count = min(_TOKENS, config.max_seq_len - _NEW_TOKENS if config.causal else config.max_seq_len)
    ids = [dice.randrange(config.vocab_size) for _ in range(max(1, count))]
    model, seq2seq = source.model, hasattr(source.model, "encoder")
    is_encoder = not seq2seq and not config.causal
    context = max(config.max_seq_len, 32)
    scaling = config.rotary_scaling or {}
    if scaling.get("type") == "longrope":  # beyond it llama.cpp has other factors for all texts
        context = min(context, scaling["original_max_seq_len"])
    with LlamaCpp(path, context, encoder=is_encoder) as runtime:
        if is_encoder:
            expected = model.features(torch.tensor([ids]))[0].detach()
            actual = torch.from_numpy(runtime.vectors(ids))
            relative = _largest(expected, actual) / float(expected.abs().max())
            distance = 1 - torch.cosine_similarity(expected.mean(0), actual.mean(0), dim=0)
            return relative, (
                f"compared with llama.cpp: vectors differ by {_largest(expected, actual):.1e} at "
                f"most, their means by a cosine distance of {max(0.0, float(distance)):.1e}"
            )
        if seq2seq:
            start = getattr(source.task, "start_id", None) or 0
            target = [start, *ids[:8]]
            expected = _target_logits(model, ids, target)
            difference = _largest(expected, torch.from_numpy(runtime.target_logits(ids, target)))
            relative = difference / float(expected.abs().max())
            return relative, f"compared with llama.cpp: logits differ by {difference:.1e} at most"
        expected = model(torch.tensor([ids]))[0].detach()
        difference = _largest(expected, torch.from_numpy(runtime.logits(ids)))
        text = greedy_difference(model, runtime, ids[: max(1, count // 2)])
    relative = difference / float(expected.abs().max())
    return relative, f"compared with llama.cpp: logits differ by {difference:.1e} at most; {text}"


def _target_logits(model: Any, source: Sequence[int], target: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([source]), torch.tensor([target]))[0]
    return logits


def _largest(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected - actual).abs().max())


def greedy_difference(model: Any, runtime: Any, prompt: list[int]) -> str:
    """Compares greedy continuations; a sentence.

    A token where the two largest logits differ by less than 1e-3 ends the comparison.
    """
    ids = list(prompt)
    for number in range(_NEW_TOKENS):
        actual = torch.from_numpy(runtime.logits(ids)[-1])
        with torch.inference_mode():
            expected = model(torch.tensor([ids]))[0, -1]
        top = expected.topk(2)
        if float(top.values[0] - top.values[1]) < _MARGIN:
            return f"greedy text is equal for {number} tokens, up to a tie"
        if int(actual.argmax()) != int(top.indices[0]):
            return f"greedy text differs after {number} tokens"
        ids.append(int(top.indices[0]))
    return f"greedy text is equal for {_NEW_TOKENS} tokens"
