"""train: from a TrainConfig to model directories on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from miniformer import registry
from miniformer.checkpoint.directory import read_remembered, save_directory
from miniformer.checkpoint.pipeline import MODELS
from miniformer.config import ConfigError, GenerationConfig, TransformerConfig, UserError
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.records import records_of
from miniformer.model.pretrained import write_text
from miniformer.tasks.task import Task
from miniformer.train_config import TrainConfig
from miniformer.training.beginning import begin_with, take_weights
from miniformer.training.budget import Budget
from miniformer.training.callbacks import (
    KeepBest,
    StopAtBudget,
    ValidateInTime,
    check_finite,
    figures_of,
)
from miniformer.training.card import model_card
from miniformer.training.interrupt import InterruptCallback, Interrupted
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.loggers import finish
from miniformer.training.plot import plot_loss
from miniformer.training.preparation import (
    check_machine,
    checkpoint,
    make_tokenizer,
    new_folder,
    precision,
)
from miniformer.training.progress import ProgressCallback, make_console, reading


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Args:
        folder: the run's folder.
        model: the model directory to use: `best`, or `last` where nothing was validated.
        task: what it was trained for.
        figures: figures of that model.
        interrupted: the signal that ended the run early; None: it ended by itself.
    """

    folder: Path
    model: Path
    task: Task
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
    kind = _kind(config)
    config = begin_with(config, kind)
    task = _task(config, kind)
    metric = _metric(config, task)
    notes = list(task.notes(metric)) if config.val_path or config.test_path else []
    check_machine(config)
    # Every mistake that can be seen without reading the data is told before it is read.
    limit = TransformerConfig.from_dict(config.model_config).max_seq_len
    seq_len = config.seq_len or limit
    if seq_len > limit:
        raise UserError(
            f"seq_len={seq_len} is longer than the model's max_seq_len={limit}; "
            f"lower seq_len or set max_seq_len={seq_len} in model_config"
        )
    with reading(console) as progress:
        records = None
        if not config.streaming:
            records = records_of(config.train_path, task.schema, progress=progress)
            task = task.fit(records)
        others = {
            name: path and records_of(path, task.schema, progress=progress)
            for name, path in (("val_path", config.val_path), ("test_path", config.test_path))
        }
        tokenizer, described = make_tokenizer(config, task, records)
        if described is not None:
            console.print(f"tokenizer: {described}")
        model_config = TransformerConfig.from_dict(
            task.model_config(config.model_config, tokenizer)
        )
        task.check(model_config, tokenizer)
        data = MiniFormerDataModule(
            records or config.train_path,
            **others,
            tokenizer=tokenizer,
            task=task,
            batch_size=config.batch_size,
            batch_tokens=config.batch_tokens,
            seq_len=seq_len,
            num_workers=config.num_workers,
            streaming=config.streaming,
            seed=config.seed,
            progress=progress,
        )
        data.setup()
    for line in (*_about(data), *notes):
        console.print(line)
    model = MODELS[kind](model_config)
    origin = None if config.init_from is None else Path(config.init_from)
    if origin is not None:
        new = take_weights(model, origin, kind)
        console.print(f"weights: of {origin}" + (f"; new: {', '.join(new)}" if new else ""))
    size = model_config.num_params(seq2seq=kind == "seq2seq")
    console.print(f"model: {size:,} parameters")
    if config.activation_checkpointing != "none":
        console.print(
            checkpoint(model, config.activation_checkpointing, task, data.train_dataloader())
        )
    budget = Budget(
        max_steps=config.max_steps, max_epochs=config.epochs, max_seconds=config.max_seconds
    )
    module = MiniFormerLitModule(
        model,
        task=task,
        tokenizer=tokenizer,
        optimizer=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        scheduler=config.scheduler,
        warmup_steps=config.warmup_steps,
        gradient_clip_val=config.gradient_clip_val,
        accumulate_grad_batches=config.accumulate_grad_batches,
        budget=budget,
    )
    folder = new_folder(Path(config.work_dir), config.experiment_name or config.task)
    console.print(f"run folder: {folder}")
    write_text(folder / "train_config.json", json.dumps(config.to_dict(), indent=2) + "\n")
    generation = GenerationConfig()
    if tokenizer is not None:
        generation = task.generation(model_config, tokenizer)

    def card(figures: dict[str, float], more: str, pictures: list[str]) -> str:
        return model_card(
            model_config, config, figures, kind=kind, task=task, tokenizer=described, more=more,
            pictures=pictures,
        )  # fmt: skip

    def save(name: str, figures: dict[str, float], more: str, *pictures: Path) -> None:
        save_directory(
            folder / name,
            model=model,
            tokenizer=tokenizer,
            task=task.settings(),
            generation=generation,
            card=card(figures, more, [picture.name for picture in pictures]),
            pictures=pictures,
            remembered={} if origin is None else read_remembered(origin),
            origin=origin,
        )

    answers = folder / "answers.png"  # what the best model gets right and wrong
    more = ""

    def describe(name: str) -> str:
        said = task.describe(module.measured)
        if task.draw(module.measured, answers) or said:
            return f"On the {name} data:\n\n{said}".rstrip()
        return ""

    def save_best(figures: dict[str, float]) -> None:
        nonlocal more
        more = describe("validation")
        save("best", figures, more, *([answers] if answers.exists() else []))

    progress_bar = ProgressCallback(budget, folder / "metrics.jsonl", console)
    larger = metric in task.larger_is_better
    keep = KeepBest(save_best, metric=f"val_{metric}", larger=larger)
    interrupt = InterruptCallback()
    validate = ValidateInTime(budget, interval=config.val_interval)
    callbacks: list[L.Callback] = [StopAtBudget(budget), validate, progress_bar, keep, interrupt]
    if config.early_stopping_patience is not None:
        mode = "max" if larger else "min"
        patience = config.early_stopping_patience
        callbacks.append(EarlyStopping(f"val_{metric}", mode=mode, patience=patience))
    tests: dict[str, float] = {}
    with _quiet_lightning():
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision=precision(config),
            deterministic=config.deterministic,
            logger=registry.get("logger", config.logger)(folder),
            callbacks=callbacks,
            max_epochs=-1,  # StopAtBudget ends the run
            check_val_every_n_epoch=None,
            val_check_interval=1,  # ValidateInTime decides
            limit_val_batches=None if config.val_path else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        with interrupt, _until_stopped(interrupt):
            trainer.fit(module, data)
            if config.val_path and keep.validated_at != trainer.global_step:
                trainer.validate(module, data, verbose=False)
        if module.train_loss is not None:  # a signal may come before the next look at the loss
            check_finite(float(module.train_loss), "training", trainer.global_step)
        ended = {
            "step": trainer.global_step,
            "training_tokens": progress_bar.tokens,
            "seconds": round(budget.seconds, 1),
        }
        picture = folder / "loss.png"
        plot_loss(progress_bar.rows, picture, title=f"{folder.name}: loss", unit=task.unit)
        console.print(progress_bar.summary(trainer.train_dataloader))
        losses = {"train_loss": float(module.train_loss)} if module.train_loss is not None else {}
        save("last", {**losses, **ended}, "", picture)
        if config.test_path and interrupt.signal is None:
            if keep.best is not None:
                best = MODELS[kind].from_pretrained(folder / "best")
                model.load_state_dict(best.state_dict())
            with interrupt, _until_stopped(interrupt):
                trainer.test(module, data, verbose=False)
                tests = figures_of(trainer, "test")
    finish(trainer.loggers)

    # Now that the run is over, the card of the model to use can tell the whole story.
    which, figures = "last", {**losses, **ended, **tests}
    if keep.best is not None:
        times = {key: ended[key] for key in ("training_tokens", "seconds")}
        which, figures = "best", {**keep.best, **tests, **times}
    if tests:
        more = describe("test")
    pictures = [*([answers.name] if answers.exists() else []), picture.name]
    shown = folder / which
    write_text(shown / "README.md", card(figures, more, pictures))
    for name in pictures:
        (shown / name).write_bytes((folder / name).read_bytes())
    return RunResult(folder, shown, task, figures, interrupt.signal)


def _kind(config: TrainConfig) -> str:
    """The kind of model that learns the task: encoder or seq2seq."""
    kind: str = config.model or registry.get("task", config.task).models[0]
    return kind


def _task(config: TrainConfig, kind: str) -> Task:
    """The task as that kind of model learns it."""
    try:
        task: Task = registry.get("task", config.task).from_dict(config.task_config)
    except ConfigError as error:
        raise UserError(f"task_config: {error}") from None
    return task.for_model(kind)


def _metric(config: TrainConfig, task: Task) -> str:
    """The figure that tells the best model, without the `val_` before it."""
    metric = (config.checkpoint_metric or "loss").removeprefix("val_")
    if metric not in task.metrics:
        raise UserError(registry.unknown("checkpoint_metric", metric, list(task.metrics)))
    return metric


def _about(data: MiniFormerDataModule) -> Iterator[str]:
    """Lines about the data: how much there is, and what of it does not fit."""
    for name, words in (("train", "training"), ("val", "validation"), ("test", "test")):
        pools = data.pools.get(name)
        if pools is None:
            continue
        tokens = next(
            filter(None, (data.count(name, each) for each in ("ids", "inputs", "labels"))), None
        )
        records = getattr(pools, "records", None)
        many = "a stream" if records is None else f"{len(records):,} records"
        yield f"{words} data: {many}" + (f", {tokens:,} tokens" if tokens else "")
        if cut := data.cut(name):
            yield cut
    if data.val_path is None:
        yield "no val_path: losses shown are those of the training data"


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
