"""`miniformer generate`: continues prompts with a trained model."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer.commands.models import add_adapter_flag
from miniformer.config import GenerationConfig
from miniformer.config.command_line import (
    add_config_flags,
    miniformer_command,
    read_utf8_stdin,
    reject_file_name,
    resolve_model,
)

_NO_FLAG = ("eos_id",)  # of the tokenizer


DESCRIPTION = (
    "Continue prompts with a language model, or print the targets of a seq2seq model for "
    "sources. Options that are not given are those of the model directory's "
    "generation_config.json, which `generate DIRECTORY --help` shows."
)
ONLY_GIVEN = True  # other options are those of the model directory


def help_defaults(args: Sequence[str]) -> dict[str, Any]:
    """Decoding options of the first model directory among the arguments, for the help."""
    paths = (Path(resolve_model(item, note=False)) / "generation_config.json" for item in args)
    path = next((path for path in paths if path.is_file()), None)
    options = {} if path is None else GenerationConfig.from_file(path).to_dict()
    return {name: value for name, value in options.items() if name not in _NO_FLAG}


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument(
        "prompts",
        type=str,
        nargs="+",
        help="one or more prompts; '-' reads one from standard input",
    )
    parser.add_argument(
        "--draft",
        type=str,
        help="source of draft tokens for speculative decoding: the directory of a smaller model, "
        "lookup, or layers:N, the first N layers of the model itself; the share of accepted draft "
        "tokens and the speedup are printed",
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="truncate prompts that are too long: sources at the end, other prompts at the start",
    )
    add_adapter_flag(parser)
    add_config_flags(parser, GenerationConfig, skip=_NO_FLAG)


def run(values: dict[str, Any]) -> int:
    """Generates; returns the exit code."""
    directory, prompts, draft = (
        values.pop(name, None) for name in ("directory", "prompts", "draft")
    )
    adapter = values.pop("adapter", None)
    truncate, options = values.pop("truncate", False), values
    GenerationConfig.from_dict(options)  # reports errors before torch is imported
    options, _ = GenerationConfig.current_names(options, warn=False)
    for prompt in prompts:
        reject_file_name(
            prompt, "prompt", f"{miniformer_command()} generate {shlex.quote(directory)} - <"
        )
    prompts = [read_utf8_stdin() if prompt == "-" else prompt for prompt in prompts]
    from miniformer.checkpoint.pipeline import load

    pipeline = load(resolve_model(directory), adapter=adapter)
    options["truncate"] = truncate
    # A continuation is printed behind its prompt, an answer alone.
    starts = prompts if pipeline.continues_prompts() else [""] * len(prompts)
    if draft is not None:
        from miniformer.checkpoint.speculation_check import benchmark_speculation

        texts, summary = benchmark_speculation(pipeline, draft, prompts, options)
        for start, text in zip(starts, texts, strict=True):
            print(start + text)
        print(summary, file=sys.stderr)
        return 0
    settings = {**pipeline.generation.to_dict(), **options}
    if len(prompts) == settings["num_beams"] == settings["num_return_sequences"] == 1:
        stream = pipeline.stream(prompts[0], **options)
        first = next(stream, "")  # raises errors before anything is printed
        print(starts[0] + first, end="", flush=True)
        for text in stream:
            print(text, end="", flush=True)
        print()
        return 0
    for start, result in zip(starts, pipeline.generate(prompts, **options), strict=True):
        for text in [result] if isinstance(result, str) else result:
            print(start + text)
    return 0
