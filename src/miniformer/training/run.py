"""train: from a TrainConfig to model directories on disk."""

from __future__ import annotations

import dataclasses
import errno
import pickle
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from miniformer.checkpoint.companions import MODELS, read_companions
from miniformer.command import python
from miniformer.config import UserError
from miniformer.config.units import format_bytes
from miniformer.model.pretrained import read_config
from miniformer.tasks.task import Task
from miniformer.train_config import TrainConfig
from miniformer.training.beginning import take_weights
from miniformer.training.budget import Budget
from miniformer.training.callbacks import figures_of
from miniformer.training.choosing import fit_to_machine
from miniformer.training.compiling import compile_layers
from miniformer.training.engines import full_weights, set_weights
from miniformer.training.finite import NotFiniteError
from miniformer.training.given import Given, built, packed
from miniformer.training.launch import (
    console_of,
    from_first,
    is_launched,
    join,
    launch,
    member,
    rank,
)
from miniformer.training.limits import steps_at_most, warn_of_limits
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.loggers import finish
from miniformer.training.outputs import Outputs
from miniformer.training.parts import Parts, make_module, make_trainer, quiet_lightning
from miniformer.training.preparation import Prepared, device_type, prepare
from miniformer.training.progress import make_console
from miniformer.training.restart_folder import RunFolder
from miniformer.training.resuming import going_on, settings_of
from miniformer.training.run_folder import new_folder, unused_folders_removed
from miniformer.training.run_state import KeepState
from miniformer.training.warming import warm_settings, where_it_was_left
from miniformer.utils.streams import printable_output

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
    config: TrainConfig, *, console: Console | None = None, callbacks: Sequence[Given] = ()
) -> RunResult:
    """Trains a model and writes it to `<work_dir>/<experiment_name>/best` and `last`.

    Args:
        config: the run.
        console: where to tell of its progress; None: standard output.
        callbacks: more of Lightning's, or functions that make one; they are called after those of
            the run itself. Their `state_dict` is part of the run's state. On several devices each
            process has its own, made there by the function or copied with `pickle`.

    Raises:
        UserError: a setting, a path or a record is wrong, and nothing has been written; or the
            loss is no longer finite, and what was saved before stays.
    """
    console = console or make_console()
    with printable_output(console.file):
        return _train_on_devices(config, console, callbacks)


def _train_on_devices(
    config: TrainConfig, console: Console, callbacks: Sequence[Given]
) -> RunResult:
    """Trains in this process, or in one for each device; see `train`."""
    config, state = settings_of(config)
    if config.world_size > 1 and not is_launched():
        outcome = launch(config, _worker, packed(callbacks))
        model = Path(outcome["model"])
        task = read_companions(model, *read_config(model))[1]
        return RunResult(
            Path(outcome["folder"]), model, task, outcome["figures"], outcome["interrupted"]
        )
    join(config, device_type(config))
    kept = RunFolder(config.experiment_name or config.task)
    begun = from_first(kept.begun)
    if begun is not None and config.resume is None:  # torchrun has started the processes again
        config, state = settings_of(going_on(begun, {}))
    try:
        with unused_folders_removed() as created:
            return _train(
                config, console_of(console), built(callbacks), state, created=created, kept=kept
            )
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"{where}{error.strerror}; what was written before is whole: make room and go on "
            "with --resume RUN"
        ) from None


def _worker(settings: dict[str, Any], path: str, callbacks: bytes) -> None:
    """One of the processes of a run on several devices."""
    with member(path) as tell:
        result = train(TrainConfig.from_dict(settings), callbacks=pickle.loads(callbacks))
        if rank() == 0:
            figures, interrupted = result.figures, result.interrupted
            told = {"folder": str(result.folder), "model": str(result.model)}
            tell({**told, "figures": figures, "interrupted": interrupted})


def _train(
    config: TrainConfig,
    console: Console,
    callbacks: Sequence[L.Callback],
    state: Path | None,
    whole: Path | None = None,
    created: list[Path] | None = None,
    kept: RunFolder | None = None,
) -> RunResult:
    """See `train`.

    Args:
        config: the run.
        console: where to tell of it.
        callbacks: more of Lightning's.
        state: that it goes on from.
        whole: the folder of the run that this one is the warm start of.
        created: folder that this run makes is added here.
        kept: is told of the folder.
    """
    L.seed_everything(config.seed, verbose=False)
    resumed = None if config.resume is None else Path(config.resume)
    run = prepare(config, console, resumed=resumed)
    if state is None:
        run = fit_to_machine(run, console)
    config = run.config
    budget = Budget(
        max_steps=config.max_steps, max_epochs=config.epochs, max_seconds=config.max_seconds
    )
    steps = steps_at_most(config, run.data)
    warn_of_limits(config, steps)
    module = make_module(run, budget)
    warm = None
    if config.warm_start is not None and state is None:
        warm = warm_settings(run)
    name = config.experiment_name or config.task

    def begin() -> Path:
        made = new_folder(Path(config.work_dir), name, created)
        return made if kept is None else kept.keep(made)

    folder = resumed or from_first(begin)
    console.print(f"run folder: {folder}" if state is None else f"going on from {state}")
    outputs = Outputs(folder, run, writes=rank() == 0)
    outputs.begin()
    if run.lr_search is not None and outputs.writes:
        run.lr_search.draw(folder / "lr.png", unit=run.task.unit)
    if warm is not None:
        begun = _warm_start(run, warm, folder, console)
        if begun.interrupted is not None:
            return dataclasses.replace(begun, folder=folder)
    if config.compile:
        console.print(compile_layers(run, config.max_steps))
    parts = Parts.of(run, module, outputs, budget, console, start=state)
    with quiet_lightning():
        trainer = make_trainer(config, folder, [*parts.callbacks, *callbacks, *parts.closing])
        last = _fit(trainer, module, run, parts)
        if steps is None and parts.interrupt.signal is None:
            warn_of_limits(config, int(last["step"]))
        outputs.draw_loss(parts.progress.rows)
        console.print(parts.progress.summary(trainer, module))
        outputs.save("last", _averaged_weights(module, run, parts), last, outputs.loss)
        tests = _judge(trainer, module, run, parts, folder, console)
    finish(trainer.loggers)

    # Now that the run is over, the card of the model to use can tell the whole story.
    which, figures = "last", {**last, **tests}
    if parts.keep.best is not None:
        times = {key: last[key] for key in ("training_tokens", "seconds")}
        which, figures = "best", {**parts.keep.best, **tests, **times}
    if tests and outputs.writes:
        outputs.describe("test", module.measured)
    outputs.complete(which, figures)
    _tell(run, parts, outputs, console, figures, done=int(last["step"]), whole=whole)
    return RunResult(folder, folder / which, run.task, figures, parts.interrupt.signal)


def _warm_start(run: Prepared, settings: TrainConfig, folder: Path, console: Console) -> RunResult:
    """Trains the model on its texts first, or goes on with that; returns what it left."""
    config, state = from_first(lambda: where_it_was_left(settings, folder))
    console.print("warm start: hidden tokens of the texts")
    result = _train(config, console, (), state, whole=folder)
    if result.interrupted is None:
        new = take_weights(run.model, result.model, run.kind)
        console.print(f"warm start done; new: {', '.join(new)}")
    L.seed_everything(run.config.seed, verbose=False)  # as after a resumption
    return result


def _fit(
    trainer: L.Trainer, module: MiniFormerLitModule, run: Prepared, parts: Parts
) -> dict[str, float]:
    """Trains, and validates what came out; returns figures of it."""
    try:
        with parts.interrupt:
            trainer.fit(module, run.data)
            if run.config.val_path and parts.keep.validated_at != trainer.global_step:
                with parts.averaging.in_use(module):
                    trainer.validate(module, run.data, verbose=False)
        module.finite.check(trainer.global_step, now=True)
    except NotFiniteError as error:
        raise UserError(_broken(error, run, parts.states)) from None
    losses = {"train_loss": float(module.train_loss)} if module.train_loss is not None else {}
    return {
        **losses,
        "step": trainer.global_step,
        "training_tokens": module.tokens,
        "seconds": round(parts.budget.seconds, 1),
    }


def _averaged_weights(
    module: MiniFormerLitModule, run: Prepared, parts: Parts
) -> dict[str, torch.Tensor]:
    """Copies of them: the model gets its own weights back."""
    with parts.averaging.in_use(module):
        return {name: each.clone() for name, each in full_weights(run.model).items()}


def _judge(
    trainer: L.Trainer,
    module: MiniFormerLitModule,
    run: Prepared,
    parts: Parts,
    folder: Path,
    console: Console,
) -> dict[str, float]:
    """Offers the mean of the last weights as the best; returns test figures of the best."""
    last, tests = parts.averaging.last, {}
    if last is not None and parts.interrupt.signal is None:
        console.print(f"the mean of the weights at the last {len(last)} validations:")
        set_weights(run.model, last.mean())
        with parts.interrupt:
            trainer.validate(module, run.data, verbose=False)
    if run.config.test_path and parts.interrupt.signal is None:
        if parts.keep.best is not None:
            best = from_first(
                lambda: MODELS[run.kind].from_pretrained(folder / "best").state_dict()
            )
            set_weights(run.model, best)
        with parts.interrupt:
            trainer.test(module, run.data, verbose=False)
            tests = figures_of(trainer, "test")
    return tests


def _tell(
    run: Prepared,
    parts: Parts,
    outputs: Outputs,
    console: Console,
    figures: dict[str, float],
    done: int,
    whole: Path | None,
) -> None:
    """Writes the report and says how to go on."""
    facts, notes = parts.watch.facts(), []
    if parts.interrupt.signal is not None:
        notes.append(f"The run was stopped early, after step {done}.")
        if run.config.test_path:
            notes.append("The test data was not evaluated.")
    if run.predicted_memory is not None:
        used, predicted = parts.watch.memory(), run.predicted_memory
        facts["memory"] = f"{format_bytes(used)} at most, {format_bytes(predicted)} predicted"
        console.print(f"memory: {facts['memory']}")
    rows = (parts.progress.rows, parts.watch.rows, parts.samples.rows)
    report = outputs.report(*rows, figures, facts=facts, notes=notes)
    console.print(f"report: {report}")
    if parts.interrupt.signal is not None and parts.states.written is not None:
        console.print(f"go on from step {done} with: --resume {whole or outputs.folder}")
        if run.config.test_path:
            folder = shlex.quote(str(outputs.folder))
            console.print(
                "test_path was not evaluated, for the run was stopped; to test its model as it is: "
                f"{python()} -m miniformer.trainer --resume {folder} --max_steps {done}"
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
