"""Speed and memory of models, each in a process of its own, measured in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer.compression.comparison.workload import BATCH_SIZES, Workload
from miniformer.config import UserError


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed of a model.

    Args:
        first_seconds: median time until the first token of one input, or of one prediction.
        rates: tokens or records a second by batch size, medians.
        ratios: rate compared with the first model by batch size, medians over rounds.
        memory: bytes, the largest of the process.
    """

    first_seconds: float
    rates: dict[int, float]
    ratios: dict[int, float]
    memory: int


def measure_speeds(
    directories: Sequence[Path], workload: Workload, *, rounds: int = 3, threads: int = 0
) -> list[Speed]:
    """Measures models in turns: in each round every model does the same work.

    Args:
        directories: of the models; the first one is what the others are compared with.
        workload: the work.
        rounds: measurements of each model, after one that is not counted. The order is rotated.
        threads: of each process; 0: as many as torch chooses.

    Raises:
        UserError: a model cannot do the work.
    """
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_Process(path, threads)) for path in directories]
        for process in processes:
            process.read()
        times = [_measure(processes, workload, turn) for turn in range(rounds + 1)][1:]
        memory = [process.memory for process in processes]
    return [_summarize(times, workload, number, memory[number]) for number in range(len(memory))]


def _measure(processes: Sequence[_Process], workload: Workload, turn: int) -> list[list[float]]:
    """Seconds of one round, by model: of the first result, then of each batch size."""
    seconds: list[list[float]] = [[] for _ in processes]
    first = min(1, workload.tokens)
    for size, tokens in [(1, first), *((size, workload.tokens) for size in BATCH_SIZES)]:
        for step in range(len(processes)):
            number = (step + turn) % len(processes)
            work = {"inputs": workload.batch(size), "tokens": tokens}
            seconds[number].append(processes[number].ask(work))
    return seconds


def _summarize(
    times: Sequence[Sequence[Sequence[float]]], workload: Workload, number: int, memory: int
) -> Speed:
    def median(k: int) -> float:
        return statistics.median(seconds[number][k] for seconds in times)

    return Speed(
        first_seconds=median(0),
        rates={size: workload.amount(size) / median(k + 1) for k, size in enumerate(BATCH_SIZES)},
        ratios={
            size: statistics.median(x[0][k + 1] / x[number][k + 1] for x in times)
            for k, size in enumerate(BATCH_SIZES)
        },
        memory=memory,
    )


class _Process:
    """A process of `measured_process`; it ends with the `with` block.

    Args:
        directory: of the model.
        threads: see `measure_speeds`.
    """

    def __init__(self, directory: Path, threads: int) -> None:
        self.directory, self.memory = directory, 0
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "miniformer.compression.comparison.measured_process",
             str(directory.absolute()), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, work: dict[str, Any]) -> float:
        """Seconds of a piece of work."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `read` raises the reason
            self._process.stdin.write(json.dumps(work) + "\n")
            self._process.stdin.flush()
        return float(self.read()["seconds"])

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            UserError: the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            reason = lines[-1] if lines else f"exit code {self._process.returncode}"
            raise UserError(f"{self.directory}: cannot be measured: {reason}")
        answer: dict[str, Any] = json.loads(line)
        self.memory = answer["memory"]
        return answer
