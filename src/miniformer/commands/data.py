"""`miniformer data`: statistics and invalid records of data files, and their conversion."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING, Any

from miniformer import registry
from miniformer.commands import data_convert
from miniformer.commands.data_example import learned_example, template_of_directory
from miniformer.config import ConfigError, UserError
from miniformer.config.command_line import add_config_flags, command_parser, miniformer_command
from miniformer.config.model_fields import ModelFields
from miniformer.config.train_settings import FieldSettings

if TYPE_CHECKING:
    import numpy as np

    from miniformer.data.inspect import SplitReport

_BAR_WIDTH, _MAX_BARS = 40, 12  # width of the longest bar; bars of a histogram
_MAX_BATCH_TOKENS = 4096  # of a suggested batch
_DEFAULT_BATCH_SIZE = 16  # examples


DESCRIPTION = "Check data files, or convert them."


def add_arguments(parser: Any) -> None:
    """Adds the subcommands."""
    check = command_parser(
        "Print counts, lengths, labels, duplicates and invalid records of data files. Training "
        "accepts files without invalid records. The exit code is 1 for invalid records, else 0."
    )
    check.add_argument("files", type=str, nargs="+", help="training files or globs")
    check.add_argument(
        "--task", type=str, default="language_modeling", help=", ".join(_task_names())
    )
    check.add_argument(
        "--task_config", type=dict, default={}, help="options of the task, as for train"
    )
    check.add_argument("--val_path", type=str | None, default=None, help="validation data")
    check.add_argument("--test_path", type=str | None, default=None, help="test data")
    check.add_argument(
        "--tokenizer",
        type=str | None,
        default=None,
        help="byte, or a tokenizer.json or directory, to count tokens; null: words are counted",
    )
    add_config_flags(check, FieldSettings)
    check.add_argument("--faults", type=int, default=10, help="invalid records shown per split")
    inner = parser.add_subcommands(required=True, dest="what")
    inner.add_subcommand(
        "check", check, help="counts, lengths, labels, duplicates, invalid records"
    )
    data_convert.add_parser(inner)


def run(values: dict[str, Any]) -> int:
    """Checks or converts; returns the exit code."""
    if values["what"] == "convert":
        return data_convert.run(values["convert"])
    options = values["check"]
    options["task"] = registry.current_name("task", options["task"])
    if options["task"] not in _task_names():
        raise UserError(registry.unknown_name_message("task", options["task"], _task_names()))
    if options["faults"] < 0:
        raise UserError(f"faults must be at least 0, not {options['faults']}")
    from miniformer.config.resolved import given_task_options
    from miniformer.data.inspect import (
        check_training_rules,
        conflicting_labels_warning,
        find_duplicates,
        inspect_dataset,
        leakage_warning,
        mixed_label_warnings,
        similar_label_warnings,
    )
    from miniformer.data.reading.mapping import FieldMapping
    from miniformer.utils.streams import make_console, progress_bars

    try:
        given = {
            **template_of_directory(options["task"], options["tokenizer"]),
            **given_task_options(options["task_config"]),
        }
        task = registry.get("task", options["task"]).from_dict(given)
    except ConfigError as error:
        raise UserError(f"task_config: {error}") from None
    names = [field.name for field in dataclasses.fields(FieldSettings)]
    try:
        mapping = FieldMapping.from_dict({name: options[name] for name in names})
    except ConfigError as error:
        raise UserError("; ".join(error.problems)) from None
    mapping.check_fields(task.schema)
    length_fn, unit = _length_counter(options["tokenizer"], list(task.schema))
    console = make_console()

    def show(line: str) -> None:
        console.print(line.replace("█", "#") if console.options.ascii_only else line)

    sources = [("train", options["files"])]
    sources += [(name, options[f"{name}_path"]) for name in ("val", "test")]
    splits: list[SplitReport] = []
    with progress_bars(console) as progress:
        for name, path in sources:
            if path is not None:
                split = inspect_dataset(
                    name, path, task.schema, mapping=mapping, length_fn=length_fn,
                    max_errors=options["faults"], progress=progress,
                )  # fmt: skip
                mapping = split.records.mapping
                splits.append(split)
    for split in splits:
        for line in _format_split(split, unit):
            show(line)
    for index, first in enumerate(splits):
        for second in splits[index:]:
            count, examples = find_duplicates(first, second)
            name = (
                f"within {first.name}" if first is second else f"of {second.name} in {first.name}"
            )
            show(f"duplicates {name}: {count:,}")
            for line in examples:
                show(f"  {line}")
    warnings = [f"warning: {line}" for line in mixed_label_warnings(splits)]
    warnings += [f"warning: {line}; use one spelling" for line in similar_label_warnings(splits)]
    about_splits = [conflicting_labels_warning(split) for split in splits]
    about_splits += [leakage_warning(split, splits[0]) for split in splits[1:]]
    warnings += [f"warning: {line}" for line in about_splits if line is not None]
    fitted = check_training_rules(task, splits, max_errors=options["faults"])
    if fitted is not None:
        warnings += fitted.record_warnings(splits[0].valid_records())
    for line in warnings:
        show(line)
    num_invalid = sum(split.num_invalid for split in splits)
    if fitted is not None:
        for line in learned_example(fitted, splits[0], options["tokenizer"]):
            show(line)
    for split in splits:
        if split.num_invalid:
            show(f"invalid records of {split.name}: {split.num_invalid:,}")
            for problem in split.errors:
                show(f"  {problem}")
    for line in _suggest_settings(splits[0], unit, options):
        show(line)
    show(_summary(num_invalid, len(warnings)))
    return 1 if num_invalid else 0


def _summary(num_invalid: int, num_warnings: int) -> str:
    if num_invalid:
        plural, pronoun = ("s", "them") if num_invalid > 1 else ("", "it")
        return f"{num_invalid:,} invalid record{plural}; fix {pronoun} before training"
    if num_warnings:
        return "no invalid records; see the warnings above"
    return "no problems found"


def _task_names() -> list[str]:
    return registry.names("task")


def _length_counter(tokenizer: str | None, fields: list[str]) -> tuple[Any, str]:
    """Function that returns the lengths of records' fields, and their unit."""
    if tokenizer is None:

        def length(texts: list[str]) -> list[int]:
            return [len(text.split()) for text in texts]

        unit = "words"
    else:
        from miniformer.data.tokenizers.tokenizer import Tokenizer

        if tokenizer != "byte" and tokenizer in registry.names("tokenizer"):
            raise UserError(
                f"tokenizer: {tokenizer} must be trained first; run miniformer tokenizer train "
                "and give its directory"
            )
        loaded = (
            Tokenizer.train("byte", []) if tokenizer == "byte" else Tokenizer.from_path(tokenizer)
        )

        def length(texts: list[str]) -> list[int]:
            return [len(ids) for ids in loaded.encode_batch(texts)]

        unit = "tokens"

    def count(records: list[Any]) -> dict[str, list[int]]:
        lengths = {}
        for name in fields:
            values = [record[name] for record in records if isinstance(record[name], str | list)]
            if name == "text":  # it may have parts, or messages
                values = [
                    value if isinstance(value, str)
                    else "".join(part.get("text", part.get("content", "")) for part in value)
                    for value in values
                ]  # fmt: skip
            if not values or name in ("label", "labels", "tags", "value"):
                continue
            texts = [
                value if isinstance(value, str) else " ".join(value)
                for value in values
                if isinstance(value, str) or isinstance(value[0], str)
            ]
            vectors = [
                len(v) for v in values if not isinstance(v, str) and not isinstance(v[0], str)
            ]
            lengths[name] = length(texts) + vectors
        return lengths

    return count, unit


def _format_split(split: SplitReport, unit: str) -> Iterator[str]:
    import numpy as np

    num_valid = len(split.rows)
    yield f"{split.name}: {num_valid:,} valid records, {split.records.n_bytes:,} bytes"
    for name, lengths in split.lengths.items():
        percentiles = [int(np.percentile(lengths, q)) for q in (50, 90, 99)]
        yield (
            f"length of {name} in {unit} (or vectors): median {percentiles[0]}, 90 % up to "
            f"{percentiles[1]}, 99 % up to {percentiles[2]}, maximum {int(lengths.max())}"
        )
        yield from _histogram(lengths)
    if split.label_counts:
        has_tags = "tags" in split.records.schema
        total = split.label_counts.total() if has_tags else num_valid
        of_tokens = f" of {total:,} tokens" if has_tags else ""
        yield f"{'tags' if has_tags else 'labels'}: {len(split.label_counts)} classes{of_tokens}"
        counts = split.label_counts.most_common()
        for label, count in counts[:_MAX_BARS]:
            yield _bar(str(label), count, counts[0][1], total)
        if len(counts) > _MAX_BARS:
            yield f"  ... and {len(counts) - _MAX_BARS} more, the rarest with {counts[-1][1]:,}"
        if not has_tags and counts[0][1] > 3 * counts[-1][1]:
            yield """  unbalanced: consider --task_config '{"class_weights": "balanced"}'"""
    for output, values in split.values.items():
        low, high = float(values.min()), float(values.max())
        yield (
            f"values{output and f' of {output}'}: {low:g} to {high:g}, mean "
            f"{float(values.mean()):g}, standard deviation {float(values.std()):g}"
        )
        yield from _histogram(values)


def _histogram(values: np.ndarray) -> Iterator[str]:
    import numpy as np

    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "i":
        width = -(-int(high - low + 1) // _MAX_BARS)  # integers per bar
        edges = np.arange(int(low), int(high) + width + 1, width) - 0.5
        names = [f"{ceil(edge)}-{ceil(edge) + width - 1}" for edge in edges[:-1]]
        names = [name.split("-")[0] for name in names] if width == 1 else names
    else:
        edges = np.linspace(low, high, _MAX_BARS + 1)
        names = [f"{edge:.3g}" for edge in edges[:-1]]
    counts, _ = np.histogram(values, edges)
    for name, count in zip(names, counts.tolist(), strict=True):
        yield _bar(name, count, int(counts.max()), len(values))


def _bar(name: str, count: int, max_count: int, total: int) -> str:
    name = name if len(name) <= 16 else name[:15] + "…"
    bar = "█" * round(_BAR_WIDTH * count / max(1, max_count))
    return f"  {name:>16} {bar:<{_BAR_WIDTH}} {count:,} ({count / max(1, total):.1%})"


def _suggest_settings(split: SplitReport, unit: str, options: dict[str, Any]) -> Iterator[str]:
    import numpy as np

    if not split.lengths:
        return
    # A pair or prompt has one or two boundary tokens.
    covered = max(float(np.percentile(lengths, 99)) for lengths in split.lengths.values()) + 2
    length = -(-int(covered * (1.5 if unit == "words" else 1.0)) // 16) * 16
    task = options["task"]
    if task == "language_modeling":
        length = min(max(length, 128), 256)
    # A shorter limit than the default saves nothing, and the model refuses longer inputs later.
    suggestions = {}
    if task == "language_modeling" or length > ModelFields.max_seq_len:
        suggestions["max_seq_len"] = length
    flags = f" --model_config '{json.dumps(suggestions)}'" if suggestions else ""
    if not registry.get("task", task).per_token_loss:  # else the batch size follows from the tokens
        mean = sum(float(lengths.mean()) for lengths in split.lengths.values())
        mean = min(mean * (1.5 if unit == "words" else 1.0) + 1, length)
        max_size = max(1, _MAX_BATCH_TOKENS // int(mean))
        size = 2 ** (max_size.bit_length() - 1)
        if size < _DEFAULT_BATCH_SIZE:
            suggestions["batch_size"] = size
            flags += f" --batch_size {size}"
    note = " (a word counts as 1.5 tokens)" if unit == "words" else ""
    if suggestions:
        named = ", ".join(f"{name} {value}" for name, value in suggestions.items())
        yield f"suggestion: {named}{note}"
    paths = "".join(
        f" --{name} {shlex.quote(options[name])}" for name in ("val_path", "test_path")
        if options[name]
    )  # fmt: skip
    paths += "".join(
        f" --{field.name} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}"
        for field in dataclasses.fields(FieldSettings)
        if (value := options[field.name]) is not None
    )
    if options["task_config"]:
        paths += f" --task_config {shlex.quote(json.dumps(options['task_config']))}"
    files = " ".join(map(shlex.quote, options["files"]))
    yield f"train with: {miniformer_command()} train {files} --task {task}{paths}{flags}"
