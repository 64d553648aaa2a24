"""Verifies bit-exact resumption: a run that is killed at any batch resumes with the same bits.

The config is run twice, in child processes: once without interruption, once with a SIGKILL at
random batches and a resumption after each. Every loss must be equal to the last bit. So must the
final state: weights, optimizer state, averages, RNG states, the position in the data, and the
states of callbacks.
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
from safetensors.torch import load_file
from torch import Tensor

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.resume.callback import ResumeCheckpoint
from miniformer.training.resume.config import resume_config
from miniformer.training.resume.storage import (
    TENSORS_FILE,
    latest_checkpoint,
    read_checkpoint_metadata,
)
from miniformer.training.run import train

_NAME = "run"  # of the run folder


@dataclasses.dataclass(frozen=True)
class ResumeReport:
    """Result of a comparison.

    Args:
        steps: optimizer steps compared.
        kills: batches at whose start a process was killed, counted from the start of the process.
        resumed_steps: steps of the checkpoints from which the run was resumed.
        first_different_step: the first step whose loss differs or is missing; None: none.
        different_parts: parts of the final state that differ, such as model, optimizer or data.
    """

    steps: int
    kills: list[int]
    resumed_steps: list[int]
    first_different_step: int | None
    different_parts: list[str]

    @property
    def bit_exact(self) -> bool:
        """True if all losses and the final states are equal."""
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
    """Runs the first steps with and without kills, and compares the results.

    Args:
        config: the run; time limits and automatic tuning are disabled.
        folder: an empty folder for both runs.
        steps: optimizer steps, at most those of the run.
        kills: number of kills.
        seed: seed of the batches at which the run is killed.
        log: prints the progress.

    Raises:
        UserError: the run uses several devices, or fails.
    """
    if config.world_size > 1:
        raise UserError("verify-resume is for one device; set devices=1")
    if config.max_time is not None:
        log("max_time is ignored: runs with a time limit are not reproducible")
    steps = min(steps, config.max_steps or steps)
    config = dataclasses.replace(
        config,
        max_time=None,
        max_steps=config.max_steps
        or (None if config.max_epochs else max(10 * steps, config.warmup_steps or 0)),
        test_path=None,
        find_lr=False,
        find_batch_size=False,
        memory_limit=None,
        checkpoint_interval=min(config.checkpoint_interval or 4, max(1, steps // 4)),
        logger="none",
        experiment_name=_NAME,
    )
    log(f"{steps} steps without interruption")
    losses = _run(config, folder / "whole", stop_step=steps)
    rng = random.Random(seed)
    killed, checkpoint_steps = [], []
    for left in range(kills, -1, -1):
        attempt, step = _resume_or_restart(folder / "killed", config)
        checkpoint_steps.append(step)
        if left:  # the batch is drawn from an equal fraction of the remaining steps
            batches = (steps - step) * config.accumulate_grad_batches
            killed.append(rng.randint(1, max(1, 2 * batches // (left + 1))))
            log(f"killed in batch {killed[-1]} after step {step}")
        else:
            log(f"resumed from step {step} to the end")
        kill_batch = killed[-1] if left else None
        resumed_losses = _run(attempt, folder / "killed", stop_step=steps, kill_batch=kill_batch)
    state, resumed_state = (state_digests(folder / name / _NAME) for name in ("whole", "killed"))
    return ResumeReport(
        len({*losses, *resumed_losses}),
        killed,
        checkpoint_steps[1:],
        next(iter(_differences(losses, resumed_losses)), None),
        _differences(state, resumed_state),
    )


def _differences(first: dict[Any, Any], second: dict[Any, Any]) -> list[Any]:
    """Keys whose values differ or are missing."""
    return [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]


def _resume_or_restart(work_dir: Path, config: TrainConfig) -> tuple[TrainConfig, int]:
    """The config to resume from the latest checkpoint, or to start anew, and the step."""
    checkpoint = latest_checkpoint(work_dir / _NAME)
    if checkpoint is not None:
        step = read_checkpoint_metadata(checkpoint)["step"]
        return resume_config(work_dir / _NAME, {}), step
    shutil.rmtree(work_dir / _NAME, ignore_errors=True)
    return config, 0


def _run(
    config: TrainConfig, work_dir: Path, *, stop_step: int, kill_batch: int | None = None
) -> dict[int, set[str]]:
    """Runs a child process until it ends or is killed; returns the losses of all runs there."""
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / "losses.jsonl"
    path.touch()
    config = dataclasses.replace(config, work_dir=str(work_dir))
    code, errors = _run_subprocess(
        {"config": config.to_dict(), "path": str(path), "stop": stop_step, "kill": kill_batch}
    )
    if code == 0 and kill_batch is not None:
        raise UserError(f"the run ended before batch {kill_batch}, where it is killed; lower steps")
    if code != (0 if kill_batch is None else -signal.SIGKILL):
        lines = errors.strip().splitlines() or ["the process printed no error"]
        raise UserError(f"the run to verify failed: {lines[-1].removeprefix('error: ')}")
    return _read_losses(path)


def _run_subprocess(request: dict[str, Any]) -> tuple[int, str]:
    """Runs `run_child` in a new process; returns its exit code and stderr."""
    process = subprocess.run(
        [sys.executable, "-m", "miniformer.training.resume.verify"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return process.returncode, process.stderr


def run_child(request: dict[str, Any]) -> int:
    """Entry point of the child process: trains to a step or a kill; returns the exit code."""
    recorder = _RecordingCallback(Path(request["path"]), request["stop"], request["kill"])
    try:
        train(TrainConfig.from_dict(request["config"]), callbacks=[recorder])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class _RecordingCallback(L.Callback):
    """Records every loss; saves the state and ends the process at a step, or kills it."""

    def __init__(self, path: Path, stop_step: int, kill_batch: int | None) -> None:
        self.path, self.stop_step, self.kill_batch = path, stop_step, kill_batch
        self.batches = 0

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.batches += 1
        if self.batches == self.kill_batch:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if not module.between_steps:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([trainer.global_step, float(module.train_loss).hex()]) + "\n")
        if trainer.global_step >= self.stop_step:
            # ResumeCheckpoint runs after user callbacks.
            _resume_checkpoint(trainer).take_snapshot(trainer, module, batch)
            self.on_train_end(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        _resume_checkpoint(trainer).save(trainer, module)
        os._exit(0)


def _resume_checkpoint(trainer: L.Trainer) -> ResumeCheckpoint:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, ResumeCheckpoint))


def _read_losses(path: Path) -> dict[int, set[str]]:
    """The distinct losses of each step, which may be repeated."""
    losses: dict[int, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        step, loss = json.loads(line)
        losses.setdefault(step, set()).add(loss)
    return losses


def state_digests(run_dir: Path) -> dict[str, str]:
    """A digest of each part of a run's last checkpoint, without its times."""
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    metadata = read_checkpoint_metadata(checkpoint)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(checkpoint / TENSORS_FILE).items():
        groups.setdefault(name.partition(".")[0], {})[name] = tensor
    digests = {name: weights_digest(group) for name, group in groups.items()}
    values = {
        "values of the optimizer": metadata["optimizer"],
        "averages": metadata["averages"],
        "data": metadata["data"],
        "random numbers": metadata["random"],
        "epochs": metadata["budget"]["epochs"],
        "counted tokens": metadata["tokens"],
        **{f"callback {name}": state for name, state in metadata["callbacks"].items()},
        "callbacks": metadata["callback_states"],
    }
    for name, value in values.items():
        digests[name] = digests.get(name, "") + json.dumps(value, sort_keys=True)
    return digests


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A hash of the names and bits of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(run_child(json.load(sys.stdin)))
