"""Proof that a run can be resumed: killed at any batch, it goes on with the same bits.

The run is made twice, in child processes: once undisturbed, once with a SIGKILL at batches chosen
by chance and a resumption after each. Every loss must be the same number to the last bit, and so
must all that the next step depends on be at the end: weights, the optimizer's state, averages,
random numbers, the place in the data, and what callbacks remember.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.resume.callback import ResumeCheckpoint

_NAME = "run"  # of its folder


@dataclasses.dataclass(frozen=True)
class ResumeReport:
    """What a comparison found.

    Args:
        steps: optimiser steps compared.
        kills: batches after whose begin a process was killed, counted from where it began.
        states: steps of the states from which the run went on.
        different: the first step with another loss, or that one of the runs has not taken; None:
            there is none.
        parts: of the state at the end those that differ, such as model, optimizer or random.
    """

    steps: int
    kills: list[int]
    resumed_steps: list[int]
    first_different_step: int | None
    different_parts: list[str]

    @property
    def bit_exact(self) -> bool:
        """Whether everything was the same."""
        return self.first_different_step is None and not self.different_parts


def verify_resume(
    config: TrainConfig,
    folder: Path,
    *,
    steps: int = 20,
    kills: int = 3,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> ResumeReport:
    """Makes the first steps of a run undisturbed and killed, and compares them.

    Args:
        config: the run; limits of time, and what is to be found out by trying, are left out.
        folder: an empty one for both runs.
        steps: optimiser steps.
        kills: how often it is killed.
        seed: of the batches at which it is.
        tell: told what is done.

    Raises:
        UserError: the run is on several devices, or does not come so far by itself.
    """
    if config.world_size > 1:
        raise UserError("verify-resume is for one device; set devices=1")
    if config.max_time is not None:
        log("max_time is left out: by the clock no two runs are the same")
    config = dataclasses.replace(
        config,
        max_time=None,
        max_steps=config.max_steps
        or (None if config.max_epochs else max(10 * steps, config.warmup_steps or 0)),
        test_path=None,
        find_lr=False,
        find_batch_size=False,
        memory=None,
        checkpoint_interval=min(config.checkpoint_interval or 4, max(1, steps // 4)),
        logger="none",
        experiment_name=_NAME,
    )
    chance = random.Random(seed)
    log(f"{steps} steps, undisturbed")
    whole = _read_recording(_run(config, folder / "whole", stop_step=steps))
    killed: list[int] = []
    states = [0]
    place = folder / "killed"
    for left in range(kills, 0, -1):
        # Somewhere in its share of the steps that are left.
        batches = (steps - states[-1]) * config.accumulate_grad_batches
        killed.append(chance.randint(1, max(1, 2 * batches // (left + 1))))
        log(f"killed in batch {killed[-1]} after step {states[-1]}")
        _run(_resume_or_restart(place, config), place, stop_step=steps, kill_batch=killed[-1])
        states.append(_latest_step(place))
    log(f"to the end from step {states[-1]}")
    again = _read_recording(_run(_resume_or_restart(place, config), place, stop_step=steps))
    every = sorted({*whole["losses"], *again["losses"]})
    different = next(
        (step for step in every if whole["losses"].get(step) != again["losses"].get(step)), None
    )
    names = {**whole["state"], **again["state"]}
    parts = [name for name in names if whole["state"].get(name) != again["state"].get(name)]
    return ResumeReport(len(every), killed, states[1:], different, parts)


class _RecordingCallback(L.Callback):
    """Notes every loss and the state at the end, and ends the process where it is told to."""

    def __init__(self, path: Path, stop_step: int, kill_batch: int | None) -> None:
        self.path, self.stop_step, self.kill_batch = path, stop_step, kill_batch
        self.batches = self.step = 0

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.step = trainer.global_step  # those behind a resumed run

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.batches += 1
        if self.batches == self.kill_batch:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self.step:
            return
        self.step = step
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, float(module.train_loss).hex()]) + "\n")
        if step >= self.stop_step:
            _find_resume_checkpoint(trainer).take_snapshot(
                trainer, module, batch
            )  # which comes behind a user's callback
            self.record_state_and_exit(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self.record_state_and_exit(trainer, module)

    def record_state_and_exit(self, trainer: L.Trainer, module: Any) -> None:
        """Notes the state, and ends the process at once."""
        states = _find_resume_checkpoint(trainer)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps(["state", state_digests(*states.collect_state(trainer, module))]) + "\n"
            )
        os._exit(0)


def _find_resume_checkpoint(trainer: L.Trainer) -> ResumeCheckpoint:
    (states,) = (each for each in trainer.callbacks if isinstance(each, ResumeCheckpoint))  # type: ignore[attr-defined]
    return states


def state_digests(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, str]:
    """A hash of each part of a state (see `KeepState.state_of`), the time it took left out."""
    parts = {name: weights_digest(some) for name, some in _group_by_prefix(tensors).items()}
    plain = {
        "values of the optimizer": metadata["optimizer"],
        "averages": metadata["averages"],
        "data": metadata["data"],
        "random numbers": metadata["random"],
        "epochs": metadata["budget"]["epochs"],
        "counted tokens": metadata["tokens"],
        **{f"callback {name}": each for name, each in metadata["callbacks"].items()},
        "callbacks": metadata["callback_states"],
    }
    for name, value in plain.items():
        text = json.dumps(value, sort_keys=True, default=repr)
        parts[name] = hashlib.sha256((parts.get(name, "") + text).encode()).hexdigest()
    return parts


def _group_by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.partition(".")[0], {})[name] = tensor
    return parts


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A hash of all bits of a model's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _run(
    config: TrainConfig, work_dir: Path, *, stop_step: int, kill_batch: int | None = None
) -> Path:
    """Runs a child to its end, or until it is killed; returns its notes."""
    work_dir.mkdir(parents=True, exist_ok=True)
    notes = work_dir / "losses.jsonl"
    config = dataclasses.replace(config, work_dir=str(work_dir))
    order = {"config": config.to_dict(), "notes": str(notes), "stop": stop_step, "kill": kill_batch}
    code, errors = _run_subprocess(order)
    if code != (0 if kill_batch is None else -signal.SIGKILL):
        told = errors.strip().splitlines()[-1:] or ["it ended without a word"]
        raise UserError(f"the run to verify failed: {told[0].removeprefix('error: ')}")
    return notes


def _run_subprocess(request: dict[str, Any]) -> tuple[int, str]:
    """Has a new process do what `obey` does; returns its exit code and its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "miniformer.training.resume.verify"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.returncode, done.stderr


def _read_recording(path: Path) -> dict[str, Any]:
    """The different losses of each step, however often it was done, and the state at the end."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses: dict[int, set[str]] = {}
    for step, loss in rows:
        if step != "state":
            losses.setdefault(step, set()).add(loss)
    return {"losses": losses, "state": [row[1] for row in rows if row[0] == "state"][-1]}


def _latest_step(work_dir: Path) -> int:
    """The step of the newest state; 0: there is none yet."""
    from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata

    state = latest_checkpoint(work_dir / _NAME)
    return 0 if state is None else int(read_checkpoint_metadata(state)["step"])


def _resume_or_restart(work_dir: Path, config: TrainConfig) -> TrainConfig:
    """The run from its newest state, or from its beginning where there is none yet."""
    from miniformer.training.resume.config import resume_config

    if _latest_step(work_dir):
        return resume_config(work_dir / _NAME, {})
    shutil.rmtree(work_dir / _NAME, ignore_errors=True)
    return config


def run_child(request: dict[str, Any]) -> int:
    """What a child process does: a run, up to a step or its kill; returns its exit code."""
    from miniformer.training.run import train

    probe = _RecordingCallback(Path(request["notes"]), request["stop"], request["kill"])
    try:
        train(TrainConfig.from_dict(request["config"]), callbacks=[probe])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run_child(json.load(sys.stdin)))
