"""train: from a TrainConfig to model directories on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from miniformer import registry
from miniformer.checkpoint.pipeline import MODELS, read_companions
from miniformer.config import UserError
from miniformer.config.units import format_bytes
from miniformer.model.pretrained import read_config
from miniformer.tasks.task import Task
from miniformer.train_config import TrainConfig
from miniformer.training.budget import Budget
from miniformer.training.callbacks import (
    Averaging,
    KeepBest,
    StopAtBudget,
    ValidateInTime,
    figures_of,
)
from miniformer.training.choosing import fit_to_machine
from miniformer.training.compiling import compile_layers
from miniformer.training.engines import full_weights, set_weights, strategy_of
from miniformer.training.finite import NotFiniteError
from miniformer.training.interrupt import InterruptCallback, Interrupted
from miniformer.training.launch import (
    GRACE,
    console_of,
    from_first,
    is_launched,
    join,
    launch,
    member,
    rank,
)
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.loggers import finish
from miniformer.training.outputs import Outputs
from miniformer.training.preparation import Prepared, device_type, new_folder, precision, prepare
from miniformer.training.progress import ProgressCallback, make_console
from miniformer.training.resuming import facts_of, settings_of
from miniformer.training.run_state import KeepState
from miniformer.training.samples import WriteSamples
from miniformer.training.watching import Watch

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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


def train(
    config: TrainConfig, *, console: Console | None = None, callbacks: Sequence[L.Callback] = ()
) -> RunResult:
    """Trains a model and writes it to `<work_dir>/<experiment_name>/best` and `last`.

    Args:
        config: the run.
        console: where to tell of its progress; None: standard output.
        callbacks: more of Lightning's; they are called after those of the run itself.

    Raises:
        UserError: a setting, a path or a record is wrong, and nothing has been written; or the
            loss is no longer finite, and what was saved before stays.
    """
    console = console or make_console()
    config, state = settings_of(config)
    if config.world_size > 1 and not is_launched():
        if callbacks:
            raise UserError("callbacks need devices=1, or a script of your own under torchrun")
        outcome = launch(config, _worker)
        model = Path(outcome["model"])
        task = read_companions(model, *read_config(model))[1]
        return RunResult(
            Path(outcome["folder"]), model, task, outcome["figures"], outcome["interrupted"]
        )
    join(config, device_type(config))
    try:
        return _train(config, console_of(console), callbacks, state)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"{where}{error.strerror}; what was written before is whole: make room and go on "
            "with --resume RUN"
        ) from None


def _worker(settings: dict[str, Any], path: str) -> None:
    """One of the processes of a run on several devices."""
    with member(path) as tell:
        result = train(TrainConfig.from_dict(settings))
        if rank() == 0:
            figures, interrupted = result.figures, result.interrupted
            told = {"folder": str(result.folder), "model": str(result.model)}
            tell({**told, "figures": figures, "interrupted": interrupted})


def _train(
    config: TrainConfig, console: Console, callbacks: Sequence[L.Callback], state: Path | None
) -> RunResult:
    L.seed_everything(config.seed, verbose=False)
    resumed = None if state is None else Path(str(config.resume))
    run = prepare(config, console, resumed=resumed)
    if state is None:
        run = fit_to_machine(run, console)
    config = run.config
    budget = Budget(
        max_steps=config.max_steps, max_epochs=config.epochs, max_seconds=config.max_seconds
    )
    module = _module(run, budget)
    name = config.experiment_name or config.task
    folder = resumed or from_first(lambda: new_folder(Path(config.work_dir), name))
    console.print(f"run folder: {folder}" if state is None else f"going on from {state}")
    outputs = Outputs(folder, run, writes=rank() == 0)
    outputs.begin()
    if run.lr_search is not None and outputs.writes:
        run.lr_search.draw(folder / "lr.png", unit=run.task.unit)
    if config.compile:
        console.print(compile_layers(run, config.max_steps))

    interrupt = InterruptCallback(grace=GRACE if is_launched() else 0.0)
    averaging = Averaging(run.model, ema_decay=config.ema_decay, last=config.average_checkpoints)
    keep = KeepBest(
        lambda figures: outputs.save_best(full_weights(run.model), figures, module.measured),
        metric=f"val_{run.metric}",
        larger=run.metric in run.task.larger_is_better,
        patience=config.early_stopping_patience,
    )
    validate = ValidateInTime(
        budget, interval=config.val_interval, times=5 if config.val_path else 0
    )
    watch = Watch(run, module, folder, kind=precision(config), writes=rank() == 0)
    progress = ProgressCallback(
        budget,
        folder / "metrics.jsonl",
        console,
        flops_per_token=watch.flops_per_token,
        peak=watch.peak,
        watch=watch.figures,
        writes=rank() == 0,
    )
    samples = WriteSamples(run, outputs, console)
    states = KeepState(
        folder,
        budget,
        remembering={
            "best": keep, "validate": validate, "progress": progress, "averaging": averaging,
            "watch": watch, "samples": samples,
        },
        averages=averaging.kept,
        validate=validate,
        interval=config.checkpoint_interval,
        facts=facts_of(run.data),
        start=state,
    )  # fmt: skip
    with _quiet_lightning():
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy_of(config, device_type(config)),
            precision={"float32": "32-true", "bf16": "bf16-mixed"}[precision(config)],  # type: ignore[arg-type]
            deterministic=config.deterministic,
            logger=registry.get("logger", config.logger)(folder),
            # Averages come in first; the state is written when all others have had their say.
            callbacks=[
                StopAtBudget(budget), validate, watch, samples, progress, keep, averaging,
                interrupt, states, *callbacks,
            ],
            max_epochs=-1,  # StopAtBudget ends the run
            check_val_every_n_epoch=None,
            val_check_interval=1,  # ValidateInTime decides
            limit_val_batches=None if config.val_path else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,  # batches share themselves among devices
            inference_mode=False,  # in which averages could not be changed again
            default_root_dir=folder,
        )  # fmt: skip
        try:
            with interrupt, _until_stopped(interrupt):
                trainer.fit(module, run.data)
                if config.val_path and keep.validated_at != trainer.global_step:
                    with averaging.in_use(module):
                        trainer.validate(module, run.data, verbose=False)
            module.finite.check(trainer.global_step, now=True)
        except NotFiniteError as error:
            raise UserError(_broken(error, run, states)) from None
        done = trainer.global_step
        with averaging.in_use(module):
            weights = full_weights(run.model)
        ended = {
            "step": done,
            "training_tokens": module.tokens,
            "seconds": round(budget.seconds, 1),
        }
        outputs.draw_loss(progress.rows)
        console.print(progress.summary(trainer, module))
        losses = {"train_loss": float(module.train_loss)} if module.train_loss is not None else {}
        outputs.save("last", weights, {**losses, **ended}, outputs.loss)
        if averaging.last is not None and interrupt.signal is None:
            console.print(f"the mean of the weights at the last {len(averaging.last)} validations:")
            set_weights(run.model, averaging.last.mean())
            with interrupt, _until_stopped(interrupt):
                trainer.validate(module, run.data, verbose=False)
        tests: dict[str, float] = {}
        if config.test_path and interrupt.signal is None:
            if keep.best is not None:
                best = from_first(
                    lambda: MODELS[run.kind].from_pretrained(folder / "best").state_dict()
                )
                set_weights(run.model, best)
            with interrupt, _until_stopped(interrupt):
                trainer.test(module, run.data, verbose=False)
                tests = figures_of(trainer, "test")
    finish(trainer.loggers)

    # Now that the run is over, the card of the model to use can tell the whole story.
    which, figures = "last", {**losses, **ended, **tests}
    if keep.best is not None:
        times = {key: ended[key] for key in ("training_tokens", "seconds")}
        which, figures = "best", {**keep.best, **tests, **times}
    if tests and outputs.writes:
        outputs.describe("test", module.measured)
    outputs.complete(which, figures)
    facts, notes = watch.facts(), []
    if interrupt.signal is not None:
        notes.append(f"The run was stopped early, after step {done}.")
    if run.predicted_memory is not None:
        used, predicted = watch.memory(), run.predicted_memory
        facts["memory"] = f"{format_bytes(used)} at most, {format_bytes(predicted)} predicted"
        console.print(f"memory: {facts['memory']}")
    report = outputs.report(
        progress.rows, watch.rows, samples.rows, figures, facts=facts, notes=notes
    )
    console.print(f"report: {report}")
    if interrupt.signal is not None and states.written is not None:
        console.print(f"go on from step {done} with: --resume {folder}")
    return RunResult(folder, folder / which, run.task, figures, interrupt.signal)


def _module(run: Prepared, budget: Budget) -> MiniFormerLitModule:
    config = run.config
    return MiniFormerLitModule(
        run.model,
        task=run.task,
        tokenizer=run.tokenizer,
        optimizer=config.optimizer,
        optimizer_config=config.optimizer_config,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_lr_decay=config.layer_lr_decay,
        scheduler=config.scheduler,
        warmup_steps=config.warmup_steps,
        warmup_share=config.warmup_share,
        gradient_clip_val=config.gradient_clip_val,
        accumulate_grad_batches=config.accumulate_grad_batches,
        budget=budget,
    )


def _broken(error: NotFiniteError, run: Prepared, states: KeepState) -> str:
    """What a user should know of a loss that is no number: the records, and the way back."""
    lines = [str(error)]
    numbers: list[int] = []
    batches = run.data.train_dataloader()
    for place in error.places:
        numbers += batches.trace(place) or []
    records = getattr(run.data.pools["train"], "records", None)
    if numbers and records is not None:
        shown = ", ".join(records.where(number) for number in numbers[:5])
        more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        lines.append(f"records of that batch: {shown}{more}")
    if states.written is not None:
        lines.append(
            f"the last good state is {states.written}; --resume {states.run} with a lower lr "
            "goes on from it"
        )
    return "; ".join(lines)


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
