"""`miniformer tokenizer`: trains a tokenizer, or adds special tokens to a model directory."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.config import UserError
from miniformer.config.command_line import command_parser, python_command, resolve_model

_TEXT_FIELDS = ("text", "input", "source", "target")  # text fields of all tasks


DESCRIPTION = "Train a tokenizer, or add special tokens to a model."


def add_arguments(parser: Any) -> None:
    """Adds the subcommands."""
    train = command_parser("Train a tokenizer on the text of data files.")
    train.add_argument("files", type=str, nargs="+", help="files or globs, in the formats of train")
    train.add_argument("--kind", type=str, default="bpe", help=", ".join(_tokenizer_kinds()))
    train.add_argument("--vocab_size", type=int | None, default=None, help="maximum number of ids")
    train.add_argument(
        "--fields", type=list[str], default=list(_TEXT_FIELDS),
        help="fields of a record to train on, such as '[source]'",
    )  # fmt: skip
    train.add_argument("--out", type=str, default="tokenizer", help="directory to write")
    inner = parser.add_subcommands(required=True, dest="what")
    inner.add_subcommand("train", train, help="train a tokenizer on your text")
    add = command_parser(
        "Write a model directory with further special tokens, such as those of a chat template. "
        "Their rows of the embedding and the head are the means of the others."
    )
    add.add_argument("directory", type=str, help="model directory, or the folder of a run")
    add.add_argument("out", type=str, help="model directory to write")
    add.add_argument("tokens", type=str, nargs="+", help="texts, such as '<|im_start|>'")
    inner.add_subcommand("add-tokens", add, help="add special tokens to a model directory")


def run(values: dict[str, Any]) -> int:
    """Trains and writes a tokenizer, or adds tokens; returns the exit code."""
    if values["what"] == "add-tokens":
        return _add_tokens(values["add-tokens"])
    options = values["train"]
    out, kind = Path(options["out"]), options["kind"]
    if kind not in _tokenizer_kinds():
        raise UserError(registry.unknown_name_message("kind", kind, _tokenizer_kinds()))
    if (out / "tokenizer.json").exists():
        raise UserError(f"out: {out} already has a tokenizer; use another directory")
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; use a directory")
    from miniformer.data.reading.records import JSONLinesDataset
    from miniformer.data.tokenizers.tokenizer import Tokenizer
    from miniformer.data.tokenizers.training import SAMPLE_BYTES, TextSample
    from miniformer.utils.streams import make_console, progress_bars

    console = make_console()
    with progress_bars(console) as progress:
        records = JSONLinesDataset(options["files"], {}, progress=progress)
        fields = options["fields"]
        sample = TextSample(_iter_texts(records, fields, progress))
        start_time = time.monotonic()
        tokenizer = Tokenizer.train(kind, sample, options["vocab_size"])
    if not sample.num_chars:
        raise UserError(f"{records.name}: no text found")
    size = tokens = 0
    for text in TextSample(_iter_texts(records, fields, lambda *_: None), 2**20):
        size += len(text.encode())
        tokens += len(tokenizer.encode(text))
    try:
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out / "tokenizer.json")
    except OSError as error:
        raise UserError(f"out: cannot write {out}: {error.strerror}") from None
    prefix = f"the first {SAMPLE_BYTES / 1e6:.0f} MB of " if sample.truncated else ""
    console.print(
        f"{kind}: {tokenizer.vocab_size:,} ids, trained on {prefix}{records.name} in "
        f"{time.monotonic() - start_time:.1f} s; {size / max(1, tokens):.2f} bytes per token "
        "at its start"
    )
    console.print(f"tokenizer: {out}")
    first = shlex.quote(str(records.files[0]))
    console.print(
        f"use it: {python_command()} -m miniformer.trainer --train_path {first} "
        f"--tokenizer {shlex.quote(str(out))}"
    )
    return 0


def _add_tokens(options: dict[str, Any]) -> int:
    from miniformer.checkpoint.add_tokens import add_tokens

    result = add_tokens(resolve_model(options["directory"]), options["out"], options["tokens"])
    for token in result.existing:
        print(f"{token}: exists")
    for token, token_id in result.new.items():
        print(f"{token}: id {token_id}")
    before, after = result.vocab_size
    print(f"vocabulary: {before:,} -> {after:,} ids; written to {options['out']}")
    return 0


def _tokenizer_kinds() -> list[str]:
    return registry.names("tokenizer")


def _iter_texts(records: Any, fields: list[str], progress: Any) -> Iterator[str]:
    """All texts in the fields of all records."""
    for index, record in enumerate(records):
        texts = [text for name in fields for text in _strings(record.get(name))]
        if not texts:
            raise UserError(
                f"{records.location(index)}: the record has no text; it needs a string in one of "
                f"{', '.join(map(repr, fields))}"
            )
        yield from texts
        if index % 1024 == 0:
            progress("reading", index, len(records))


def _strings(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]
