"""train: from a TrainConfig to model directories on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from miniformer import registry
from miniformer.checkpoint.directory import save_directory
from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.records import JSONLinesDataset
from miniformer.data.tokenizer import Tokenizer
from miniformer.model.checkpointing import kept_bytes
from miniformer.model.pretrained import write_text
from miniformer.model.stack import set_activation_checkpointing
from miniformer.model.transformer import Transformer
from miniformer.train_config import TrainConfig
from miniformer.training.budget import Budget
from miniformer.training.callbacks import KeepBest, StopAtBudget, ValidateInTime, check_finite
from miniformer.training.card import model_card
from miniformer.training.interrupt import InterruptCallback, Interrupted
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.loggers import finish
from miniformer.training.plot import plot_loss
from miniformer.training.progress import ProgressCallback, make_console


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Args:
        folder: the run's folder.
        model: the model directory to use: `best`, or `last` where nothing was validated.
        figures: figures of that model.
        interrupted: the signal that ended the run early; None: it ended by itself.
    """

    folder: Path
    model: Path
    figures: dict[str, float]
    interrupted: int | None


def train(config: TrainConfig, *, console: Console | None = None) -> RunResult:
    """Trains a model and writes it to `<work_dir>/<experiment_name>/best` and `last`.

    Args:
        config: the run.
        console: where to tell of its progress; None: standard output.

    Raises:
        UserError: a setting, a path or a record is wrong, and nothing has been written; or the
            loss is no longer finite, and what was saved before stays.
    """
    console = console or make_console()
    L.seed_everything(config.seed, verbose=False)
    task = registry.get("task", config.task)()
    _check_machine(config)
    # Every mistake that can be seen without reading the text is told before it is read.
    wanted = TransformerConfig.from_dict({"causal": True, **config.model_config})
    seq_len = config.seq_len or wanted.max_seq_len
    if seq_len > wanted.max_seq_len:
        raise UserError(
            f"seq_len={seq_len} is longer than the model's max_seq_len={wanted.max_seq_len}; "
            f"lower seq_len or set max_seq_len={seq_len} in model_config"
        )
    records = JSONLinesDataset(config.train_path, task.schema)
    val_records = config.val_path and JSONLinesDataset(config.val_path, task.schema)
    tokenizer, described = _tokenizer(config, records)
    console.print(f"tokenizer: {described}")
    vocab_size = config.model_config.get("vocab_size", tokenizer.vocab_size)
    model_config = dataclasses.replace(wanted, vocab_size=vocab_size)
    task.check(model_config, tokenizer)

    data = MiniFormerDataModule(
        records,
        val_path=val_records,
        tokenizer=tokenizer,
        task=task,
        batch_size=config.batch_size,
        seq_len=seq_len,
        num_workers=config.num_workers,
        seed=config.seed,
    )
    data.setup()
    assert data.train_data is not None
    console.print(f"training text: {len(data.train_data.tokens):,} tokens")
    if data.val_data is None:
        console.print("no val_path: losses shown are those of the training text")
    else:
        console.print(f"validation text: {len(data.val_data.tokens):,} tokens")
    model = Transformer(model_config)
    console.print(f"model: {model_config.num_params():,} parameters")
    if config.activation_checkpointing != "none":
        console.print(_checkpoint(model, config.activation_checkpointing, task, data))

    steps_per_epoch = math.ceil(len(data.train_dataloader()) / config.accumulate_grad_batches)
    limits = [config.max_steps] if config.max_steps else []
    limits += [config.epochs * steps_per_epoch] if config.epochs else []
    budget = Budget(max_steps=min(limits, default=None), max_seconds=config.max_seconds)
    module = MiniFormerLitModule(
        model,
        task=task,
        optimizer=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        scheduler=config.scheduler,
        warmup_steps=config.warmup_steps,
        gradient_clip_val=config.gradient_clip_val,
        accumulate_grad_batches=config.accumulate_grad_batches,
        budget=budget,
    )
    folder = _new_folder(Path(config.work_dir), config.experiment_name or config.task)
    console.print(f"run folder: {folder}")
    write_text(folder / "train_config.json", json.dumps(config.to_dict(), indent=2) + "\n")

    def save(name: str, figures: dict[str, float], pictures: tuple[Path, ...] = ()) -> None:
        save_directory(
            folder / name,
            model=model,
            tokenizer=tokenizer,
            task=task.settings(plain_text=records.is_plain_text),
            generation=GenerationConfig(
                max_new_tokens=min(128, -(-model_config.max_seq_len // 2)),
                temperature=0.8,
                eos_id=tokenizer.boundary_id,
            ),
            card=model_card(
                model_config, config, figures, tokenizer=described, picture=bool(pictures)
            ),
            pictures=pictures,
        )

    progress = ProgressCallback(budget, folder / "metrics.jsonl", console)
    keep = KeepBest(lambda figures: save("best", figures))
    interrupt = InterruptCallback()
    validate = ValidateInTime(budget, interval=config.val_interval)
    callbacks: list[L.Callback] = [StopAtBudget(budget), validate, progress, keep, interrupt]
    if config.early_stopping_patience is not None:
        callbacks.append(
            EarlyStopping("val_loss", mode="min", patience=config.early_stopping_patience)
        )
    with _quiet_lightning():
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision=_precision(config),
            deterministic=config.deterministic,
            logger=registry.get("logger", config.logger)(folder),
            callbacks=callbacks,
            max_epochs=-1,  # StopAtBudget ends the run
            check_val_every_n_epoch=None,
            val_check_interval=1,  # ValidateInTime decides
            limit_val_batches=None if data.val_data is not None else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        with interrupt, _until_stopped(interrupt):
            trainer.fit(module, data)
            if data.val_data is not None and keep.validated_at != trainer.global_step:
                trainer.validate(module, data, verbose=False)
    finish(trainer.loggers)

    if module.train_loss is not None:  # a signal may come before the next look at the loss
        check_finite(float(module.train_loss), "training", trainer.global_step)
    ended = {
        "step": trainer.global_step,
        "training_tokens": progress.tokens,
        "seconds": round(budget.seconds, 1),
    }
    picture = folder / "loss.png"
    plot_loss(progress.rows, picture, title=f"{folder.name}: loss")
    last_losses = {"train_loss": float(module.train_loss)} if module.train_loss is not None else {}
    save("last", {**last_losses, **ended}, (picture,))
    if keep.best is None:
        return RunResult(folder, folder / "last", {**last_losses, **ended}, interrupt.signal)
    # The best model was saved on the way; now its card can tell the whole story.
    best = {**keep.best, **{key: ended[key] for key in ("training_tokens", "seconds")}}
    card = model_card(model_config, config, best, tokenizer=described, picture=True)
    (folder / "best" / picture.name).write_bytes(picture.read_bytes())
    write_text(folder / "best" / "README.md", card)
    return RunResult(folder, folder / "best", best, interrupt.signal)


def _check_machine(config: TrainConfig) -> None:
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


def _tokenizer(config: TrainConfig, records: JSONLinesDataset) -> tuple[Tokenizer, str]:
    """The tokenizer that the config names, and a line about it."""
    if config.tokenizer in registry.names("tokenizer"):
        texts = (record["text"] for record in records)
        tokenizer = Tokenizer.train(config.tokenizer, texts, config.model_config.get("vocab_size"))
        return (
            tokenizer,
            f"{config.tokenizer}, {tokenizer.vocab_size:,} ids, trained on {config.train_path}",
        )
    if not config.tokenizer.endswith(".json"):
        known = registry.unknown("tokenizer", config.tokenizer, registry.names("tokenizer"))
        raise UserError(f"{known}; or name a tokenizer.json file")
    tokenizer = Tokenizer.from_file(config.tokenizer)
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from {config.tokenizer}"


def _precision(config: TrainConfig) -> Any:
    if config.precision != "auto":
        return {"float32": "32-true", "bf16": "bf16-mixed"}[config.precision]
    on_gpu = config.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def _checkpoint(model: Transformer, how: str, task: Any, data: MiniFormerDataModule) -> str:
    """Turns activation checkpointing on; returns what it saves, measured on one window."""
    assert data.train_data is not None
    window = data.train_data.collate([data.train_data[0]])
    kept = []
    for each in ("none", how):
        set_activation_checkpointing(model, each)
        with torch.random.fork_rng():  # the run's own random numbers stay as they were
            kept.append(kept_bytes(lambda: task.loss(model, window)[0]))
    before, after = (f"{size * data.batch_size / 1e6:,.1f} MB" for size in kept)
    return f"kept for the backward pass of a batch: {after}, {before} without checkpointing"


def _new_folder(work_dir: Path, name: str) -> Path:
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


@contextlib.contextmanager
def _until_stopped(interrupt: InterruptCallback) -> Iterator[None]:
    """Lets the first signal end training without an error; everything else goes its way."""
    try:
        yield
    except Interrupted:
        pass
    except SystemExit as error:
        # Lightning's own answer to SIGTERM, where it sees it first, and to a second Ctrl-C.
        if not isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from None
    except RuntimeError as error:
        # Worker processes that were sent the same signal.
        if interrupt.signal is None or "DataLoader worker" not in str(error):
            raise


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's hints, which are for authors of training code, from users of this one."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
