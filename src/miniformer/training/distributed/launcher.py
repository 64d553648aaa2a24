"""A process for each device: started here, or by torchrun, as the environment then says."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.distributed.restarts import agent_store, rendezvous
from miniformer.utils.atomic import write_text

T = TypeVar("T")
GRACE_PERIOD = 2.0  # seconds in which several signals are one wish: the launcher passes on its own


def is_launched() -> bool:
    """Whether this is one of several processes that torchrun, or `launch`, has started."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(config: TrainConfig, worker: Callable[..., None], *worker_args: Any) -> dict[str, Any]:
    """Runs a worker on each device of this machine; returns what the first wrote as its outcome.

    Args:
        config: the run.
        worker: an importable function of the run's settings and the file for its outcome.
        *more: arguments of the worker behind these, which `pickle` must be able to copy.

    Raises:
        UserError: a worker did; or the run is to use other machines, whose processes only
            torchrun can start.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if config.num_nodes > 1:
        raise UserError(
            f"num_nodes={config.num_nodes} needs the processes of all machines: start on each "
            f"`torchrun --nnodes {config.num_nodes} --nproc_per_node {config.devices} "
            "--rdzv_backend c10d --rdzv_endpoint FIRST_MACHINE:29500 -m miniformer.trainer ...`"
        )
    folder = tempfile.TemporaryDirectory()
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="spawn",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=folder.name),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with folder:
        path = Path(folder.name) / "outcome.json"
        failed: BaseException | None = None
        try:
            elastic_launch(launcher, worker)(config.to_dict(), str(path), *worker_args)
        except ChildFailedError as error:
            failed = error
        except Exception as error:
            if type(error).__name__ != "SignalException":  # the workers have ended in good order
                raise
            failed = error
        outcome = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "error" in outcome:
        raise UserError(outcome["error"])
    if not outcome:
        raise failed or RuntimeError("the processes ended without an outcome")
    found: dict[str, Any] = outcome
    return found


@contextlib.contextmanager
def worker_context(outcome_path: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Around a worker: gives what tells its outcome, and tells of a user's mistake."""

    def write_outcome(outcome: dict[str, Any]) -> None:
        write_text(Path(outcome_path), json.dumps(outcome))

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "OMP_NUM_THREADS" not in os.environ:
        share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, share))
    try:
        yield write_outcome
    except UserError as error:
        write_outcome({"error": str(error)})
        raise SystemExit(2) from None


def init_process_group(config: TrainConfig, device_type: str) -> None:
    """Has the processes of a run know each other; until they end, for all runs that they make.

    Raises:
        UserError: there are others than the run says.
    """
    if config.world_size == 1 or dist.is_initialized():
        return
    there = int(os.environ["WORLD_SIZE"])
    if there != config.world_size:
        raise UserError(
            f"devices={config.devices} times num_nodes={config.num_nodes} are not the {there} "
            "processes that were started; set them to what the launcher starts"
        )
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend, store = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo", agent_store()
    if store is None:
        dist.init_process_group(backend)
    else:
        number = int(os.environ["RANK"])
        own = rendezvous(store, number, there)
        dist.init_process_group(backend, store=own, rank=number, world_size=there)
    atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process among those of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def broadcast_from_rank0(factory: Callable[[], T]) -> T:
    """What the first process makes, on all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return factory()
    made: list[Any] = [factory() if rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    value: T = made[0]
    return value


def rank0_console(console: Console) -> Console:
    """The console for the first process; the others have nothing to say."""
    return console if rank() == 0 else Console(file=io.StringIO())
