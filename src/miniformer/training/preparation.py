"""What a run needs before it begins: a machine, a tokenizer, a model, a folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.batches import Batches
from miniformer.data.records import Records
from miniformer.data.tokenizer import Tokenizer
from miniformer.data.tokenizer_training import SAMPLE_BYTES, TextSample
from miniformer.model.checkpointing import kept_bytes
from miniformer.model.stack import set_activation_checkpointing
from miniformer.tasks.task import Task
from miniformer.train_config import TrainConfig


def check_machine(config: TrainConfig) -> None:
    """Refuses what this machine does not have."""
    name = config.accelerator
    missing = (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(f"accelerator={name} is not to be had on this machine; use cpu or auto")
    if config.logger == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError(
            'logger=wandb needs the package wandb; pip install "miniformer[wandb]", '
            "or use tensorboard, csv or none"
        )


def make_tokenizer(
    config: TrainConfig, task: Task, records: Records | None
) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that the config names, and a line about it; None: the task reads no text.

    Args:
        config: the run.
        task: knows its training data.
        records: the training data; None: it is streamed.

    Raises:
        UserError: a tokenizer is unknown, is not there, or cannot be trained on these records.
    """
    if config.source_tokenizer is not None and task.two_texts is None:
        raise UserError(
            f"source_tokenizer is for tasks with sources and targets, such as seq2seq; "
            f"task={config.task} has none"
        )
    if not task.reads_text():
        return None, None
    if config.source_tokenizer is None:
        texts = None if records is None else (t for each in records for t in task.texts(each))
        return _make_one("tokenizer", config, "vocab_size", records, texts)
    assert task.two_texts is not None
    made = []
    for option, size, field in (
        ("source_tokenizer", "source_vocab_size", task.two_texts[0]),
        ("tokenizer", "vocab_size", task.two_texts[1]),
    ):
        texts = None if records is None else (each[field] for each in records)
        made.append(_make_one(option, config, size, records, texts))
    (source, of_sources), (tokenizer, of_targets) = made
    tokenizer.source = source
    return tokenizer, f"of targets {of_targets}; of sources {of_sources}"


def _make_one(
    option: str,
    config: TrainConfig,
    size: str,
    records: Records | None,
    texts: Iterator[str] | None,
) -> tuple[Tokenizer, str]:
    """The tokenizer that an option names, and a line about it.

    Args:
        option: the name of a field of `config`.
        config: the run.
        size: the field of the model's config that says how many ids there are room for.
        records: where `texts` come from.
        texts: to train on; None: they are streamed.
    """
    name = getattr(config, option)
    if name in registry.names("tokenizer"):
        if texts is None and name != "byte":
            raise UserError(
                "streaming reads its text once, so that no tokenizer can be trained on it; set "
                f"{option} to byte, or to a tokenizer.json"
            )
        sample = TextSample(texts or ())
        tokenizer = Tokenizer.train(name, sample, config.model_config.get(size))
        part = f"the first {SAMPLE_BYTES / 1e6:.0f} MB of " if sample.cut else ""
        on = "" if records is None else f", trained on {part}{records.name}"
        return tokenizer, f"{name}, {tokenizer.vocab_size:,} ids{on}"
    if not Path(name).exists() and not name.endswith(".json"):
        known = registry.unknown(option, name, registry.names("tokenizer"))
        raise UserError(f"{known}; or name a tokenizer.json, or a directory with one")
    tokenizer = Tokenizer.from_path(name)
    note = "" if tokenizer.note is None else f"; {tokenizer.note}"
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from {name}{note}"


def precision(config: TrainConfig) -> Any:
    """What Lightning calls the config's precision."""
    if config.precision != "auto":
        return {"float32": "32-true", "bf16": "bf16-mixed"}[config.precision]
    on_gpu = config.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def checkpoint(model: Any, how: str, task: Task, batches: Batches) -> str:
    """Turns activation checkpointing on; returns what it saves, measured on a batch."""
    batch, kept = next(iter(batches)), []
    for each in ("none", how):
        set_activation_checkpointing(model, each)
        with torch.random.fork_rng():  # the run's own random numbers stay as they were
            kept.append(kept_bytes(lambda: task.loss(model, batch)[0]))
    before, after = (f"{size / 1e6:,.1f} MB" for size in kept)
    return f"kept for the backward pass of a batch: {after}, {before} without checkpointing"


def new_folder(work_dir: Path, name: str) -> Path:
    """Makes `work_dir/name`, or the first free `name-2`, `name-3`...: no run overwrites another."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"work_dir: cannot make {work_dir}: {error.strerror}") from None
    number = 1
    while True:
        folder = work_dir / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"work_dir: cannot make {folder}: {error.strerror}") from None
