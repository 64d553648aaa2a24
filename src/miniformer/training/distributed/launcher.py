"""Launches one process per device; with torchrun, the environment describes the process group."""

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
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from rich.console import Console

from miniformer.config import UserError
from miniformer.config.train_settings import HardwareSettings
from miniformer.training.distributed.restarts import agent_store, rendezvous
from miniformer.utils.atomic import write_text

T = TypeVar("T")
START_METHOD = "spawn"  # of the processes of `launch`
GRACE_PERIOD = 2.0  # seconds in which a signal that the launcher forwards again is ignored


def is_launched() -> bool:
    """Returns True if torchrun or `launch` started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(
    hardware: HardwareSettings,
    worker: Callable[..., None],
    settings: dict[str, Any],
    *worker_args: Any,
) -> dict[str, Any]:
    """Runs a worker on each device of this machine; returns the outcome written by rank 0.

    Args:
        hardware: the devices.
        worker: an importable function of the settings and the path of its outcome.
        settings: the config of the run as JSON.
        *worker_args: further arguments of the worker; they must be picklable.

    Raises:
        UserError: a worker raised it; or the run uses several machines, which need torchrun.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if hardware.num_nodes > 1:
        raise UserError(
            f"num_nodes={hardware.num_nodes} needs the processes of all machines: start on each "
            f"`torchrun --nnodes {hardware.num_nodes} --nproc_per_node {hardware.devices} "
            "--rdzv_backend c10d --rdzv_endpoint FIRST_MACHINE:29500 -m miniformer.trainer ...`"
        )
    folder = tempfile.TemporaryDirectory()
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=hardware.devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method=START_METHOD,
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=folder.name),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with folder:
        path = Path(folder.name) / "outcome.json"
        worker_error: BaseException | None = None
        try:
            elastic_launch(launcher, worker)(settings, str(path), *worker_args)
        except ChildFailedError as error:
            worker_error = error
        except Exception as error:
            if type(error).__name__ != "SignalException":  # the workers ended normally
                raise
            worker_error = error
        outcome: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if "error" in outcome:
        raise UserError(outcome["error"])
    if not outcome:
        raise worker_error or RuntimeError("the processes ended without an outcome")
    return outcome


@contextlib.contextmanager
def worker_context(outcome_path: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Context of a worker: yields a function that writes its outcome; writes user errors itself."""

    def write_outcome(outcome: dict[str, Any]) -> None:
        write_text(Path(outcome_path), json.dumps(outcome))

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "OMP_NUM_THREADS" not in os.environ:
        num_threads = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, num_threads))
    try:
        yield write_outcome
    except UserError as error:
        write_outcome({"error": str(error)})
        raise SystemExit(2) from None


def init_process_group(hardware: HardwareSettings, device_type: str) -> None:
    """Initializes the process group, which lasts until the processes end.

    Raises:
        UserError: the number of processes differs from that of the config.
    """
    if hardware.world_size > 1 and not dist.is_initialized():
        _init_process_group(hardware, device_type)


def _init_process_group(hardware: HardwareSettings, device_type: str) -> None:
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size != hardware.world_size:
        raise UserError(
            f"devices={hardware.devices} times num_nodes={hardware.num_nodes} is not {world_size}, "
            "the number of processes; set them to what the launcher starts"
        )
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend, store = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo", agent_store()
    if store is None:
        dist.init_process_group(backend)
    else:
        global_rank = int(os.environ["RANK"])
        group_store = rendezvous(store, global_rank, world_size)
        dist.init_process_group(backend, store=group_store, rank=global_rank, world_size=world_size)
    atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def broadcast_from_rank0(factory: Callable[[], T]) -> T:
    """Calls `factory` on rank 0 and broadcasts the result to all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return factory()
    objects: list[Any] = [factory() if rank() == 0 else None]
    dist.broadcast_object_list(objects, src=0)
    return cast(T, objects[0])


def rank0_console(console: Console) -> Console:
    """The console on rank 0; a silent one on other ranks."""
    return console if rank() == 0 else Console(file=io.StringIO())
