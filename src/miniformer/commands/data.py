"""`miniformer data check`: what is in a file, and what is wrong with it, before hours are spent."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING, Any

from miniformer import registry
from miniformer.config import ConfigError, UserError
from miniformer.config.command_line import command_parser, python_command

if TYPE_CHECKING:
    import numpy as np

    from miniformer.data.inspect import SplitReport

_BAR_WIDTH, _MAX_BARS = 40, 12  # width of the longest bar; bars of a histogram
_MAX_BATCH_TOKENS = 4096  # in a batch that is suggested, at most
_DEFAULT_BATCH_SIZE = 16  # examples, where nobody says otherwise


def add_data_command(commands: Any) -> None:
    """Adds `data`, which has subcommands of its own, to those of a parser."""
    parser = command_parser("Look at data files.")
    commands.add_subcommand("data", parser, help="look over data files before training")
    check = command_parser(
        "Print counts, lengths, labels, duplicates and faults of data files. A file without "
        "faults is one that training takes. The exit code is 0 without faults, else 1."
    )
    check.add_argument("files", type=str, nargs="+", help="training files or patterns")
    check.add_argument(
        "--task", type=str, default="language_modeling", help=", ".join(_task_names())
    )
    check.add_argument(
        "--task_config", type=dict, default={}, help="settings of the task, as train takes them"
    )
    check.add_argument("--val_path", type=str | None, default=None, help="validation data")
    check.add_argument("--test_path", type=str | None, default=None, help="test data")
    check.add_argument(
        "--tokenizer",
        type=str | None,
        default=None,
        help="byte, or a tokenizer.json or directory, to count tokens; else words are counted",
    )
    check.add_argument("--faults", type=int, default=10, help="faults to show of each split")
    inner = parser.add_subcommands(required=True, dest="what")
    inner.add_subcommand("check", check, help="counts, lengths, labels, duplicates, faults")


def run_data(values: dict[str, Any]) -> int:
    """Checks; returns the exit code."""
    options = values["check"]
    options["task"] = registry.current_name("task", options["task"])
    if options["task"] not in _task_names():
        raise UserError(registry.unknown_name_message("task", options["task"], _task_names()))
    if options["faults"] < 0:
        raise UserError(f"faults must be at least 0, not {options['faults']}")
    from miniformer.data.inspect import (
        check_training_rules,
        find_duplicates,
        inspect_dataset,
        similar_label_warnings,
    )
    from miniformer.training.callbacks.progress import make_console, progress_bars

    try:
        task = registry.get("task", options["task"]).from_dict(options["task_config"])
    except ConfigError as error:
        raise UserError(f"task_config: {error}") from None
    count, unit = _length_counter(options["tokenizer"], list(task.schema))
    console = make_console()

    def show(line: str) -> None:
        console.print(line.replace("█", "#") if console.options.ascii_only else line)

    sources = [("train", options["files"])]
    sources += [(name, options[f"{name}_path"]) for name in ("val", "test")]
    with progress_bars(console) as progress:
        splits = [
            inspect_dataset(
                name, path, task.schema, length_fn=count, max_errors=options["faults"],
                progress=progress,
            )
            for name, path in sources
            if path is not None
        ]  # fmt: skip
    for split in splits:
        for line in _format_split(split, unit):
            show(line)
    for index, one in enumerate(splits):
        for other in splits[index:]:
            number, shown = find_duplicates(one, other)
            within = f"within {one.name}" if one is other else f"of {other.name} in {one.name}"
            show(f"duplicates {within}: {number:,}")
            for line in shown:
                show(f"  {line}")
    for line in similar_label_warnings(splits):
        show(f"warning: {line}; spell them alike")
    check_training_rules(task, splits, max_errors=options["faults"])
    wrong = sum(split.num_invalid for split in splits)
    for split in splits:
        if split.num_invalid:
            show(f"faults of {split.name}: {split.num_invalid:,}")
            for fault in split.errors:
                show(f"  {fault}")
    for line in _suggest_settings(splits[0], unit, options):
        show(line)
    show("nothing is wrong" if not wrong else f"{wrong:,} faults; mend them, then train")
    return 1 if wrong else 0


def _task_names() -> list[str]:
    return registry.names("task")


def _length_counter(tokenizer: str | None, fields: list[str]) -> tuple[Any, str]:
    """A function that gives the lengths of records' fields, and their unit."""
    if tokenizer is None:

        def length(texts: list[str]) -> list[int]:
            return [len(text.split()) for text in texts]

        unit = "words"
    else:
        from miniformer.data.tokenizers.tokenizer import Tokenizer

        if tokenizer != "byte" and tokenizer in registry.names("tokenizer"):
            raise UserError(
                f"tokenizer: {tokenizer} has to be trained first; run miniformer tokenizer train, "
                "and name its directory"
            )
        one = Tokenizer.train("byte", []) if tokenizer == "byte" else Tokenizer.from_path(tokenizer)

        def length(texts: list[str]) -> list[int]:
            return [len(ids) for ids in one.encode_batch(texts)]

        unit = "tokens"

    def count(records: list[Any]) -> dict[str, list[int]]:
        found = {}
        for name in fields:
            values = [record[name] for record in records if isinstance(record[name], str | list)]
            if not values or name == "label":
                continue
            texts = [
                value if isinstance(value, str) else " ".join(value)
                for value in values
                if isinstance(value, str) or isinstance(value[0], str)
            ]
            vectors = [
                len(v) for v in values if not isinstance(v, str) and not isinstance(v[0], str)
            ]
            found[name] = length(texts) + vectors
        return found

    return count, unit


def _format_split(split: SplitReport, unit: str) -> Iterator[str]:
    import numpy as np

    good = len(split.rows)
    yield f"{split.name}: {good:,} good records, {split.records.n_bytes:,} bytes"
    for name, lengths in split.lengths.items():
        some = [int(np.percentile(lengths, q)) for q in (50, 90, 99)]
        yield (
            f"length of {name} in {unit} (vectors where it has them): median {some[0]}, 90 % up to "
            f"{some[1]}, 99 % up to {some[2]}, longest {int(lengths.max())}"
        )
        yield from _histogram(lengths)
    if split.label_counts:
        yield f"labels: {len(split.label_counts)} classes"
        most = split.label_counts.most_common()
        for label, number in most[:_MAX_BARS]:
            yield _bar(str(label), number, most[0][1], good)
        if len(most) > _MAX_BARS:
            yield f"  ... and {len(most) - _MAX_BARS} more, the rarest with {most[-1][1]:,}"
        if most[0][1] > 3 * most[-1][1]:
            yield """  unbalanced: consider --task_config '{"class_weights": "balanced"}'"""
    if len(split.values):
        low, high = float(split.values.min()), float(split.values.max())
        yield (
            f"values: {low:g} to {high:g}, mean {float(split.values.mean()):g}, standard deviation "
            f"{float(split.values.std()):g}"
        )
        yield from _histogram(split.values)


def _histogram(values: np.ndarray) -> Iterator[str]:
    import numpy as np

    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "i":
        width = -(-int(high - low + 1) // _MAX_BARS)  # as many whole numbers in each bar
        edges = np.arange(int(low), int(high) + width + 1, width) - 0.5
        names = [f"{ceil(edge)}-{ceil(edge) + width - 1}" for edge in edges[:-1]]
        names = [name.split("-")[0] for name in names] if width == 1 else names
    else:
        edges = np.linspace(low, high, _MAX_BARS + 1)
        names = [f"{edge:.3g}" for edge in edges[:-1]]
    numbers, _ = np.histogram(values, edges)
    for name, number in zip(names, numbers.tolist(), strict=True):
        yield _bar(name, number, int(numbers.max()), len(values))


def _bar(name: str, count: int, max_count: int, total: int) -> str:
    name = name if len(name) <= 16 else name[:15] + "…"
    bar = "█" * round(_BAR_WIDTH * count / max(1, max_count))
    return f"  {name:>16} {bar:<{_BAR_WIDTH}} {count:,} ({count / max(1, total):.1%})"


def _suggest_settings(split: SplitReport, unit: str, options: dict[str, Any]) -> Iterator[str]:
    import numpy as np

    if not split.lengths:
        return
    # A pair or a prompt has a boundary or two beside its text.
    covered = max(float(np.percentile(lengths, 99)) for lengths in split.lengths.values()) + 2
    length = -(-int(covered * (1.5 if unit == "words" else 1.0)) // 16) * 16
    if unit == "words":
        length = max(length, 48)  # a single word may be read letter by letter
    name = options["task"]
    if name == "language_modeling":
        length = min(max(length, 128), 256)
    told, flags = "", ""
    if not registry.get("task", name).per_token_loss:  # else they follow from the text
        mean = sum(float(lengths.mean()) for lengths in split.lengths.values())
        mean = min(mean * (1.5 if unit == "words" else 1.0) + 1, length)
        fits = max(1, _MAX_BATCH_TOKENS // int(mean))
        size = 2 ** (fits.bit_length() - 1)
        if size < _DEFAULT_BATCH_SIZE:
            told, flags = f", batch_size {size}", f" --batch_size {size}"
    about = " (words, counted as 1.5 tokens each)" if unit == "words" else ""
    yield f"suggestion: max_seq_len {length}{told}{about}"
    paths = "".join(
        f" --{each} {shlex.quote(options[each])}" for each in ("val_path", "test_path")
        if options[each]
    )  # fmt: skip
    first = shlex.quote(options["files"][0])
    yield (
        f"train it: {python_command()} -m miniformer.trainer --task {name} --train_path {first}{paths} "
        f"--model_config '{{\"max_seq_len\": {length}}}'{flags}"
    )
