"""Rendezvous of process groups that torchrun restarts: each attempt has keys of its own.

torchrun's agent has one key-value store for all attempts of a group. The keys of an attempt, such
as its addresses, must not collide with those of another one.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]
    DistStoreError,
    PrefixStore,
    Store,
    TCPStore,
)

_STORE_PREFIX = "miniformer"
_RENDEZVOUS_TIMEOUT = timedelta(minutes=30)  # for all processes; torch's default


def agent_store() -> Store | None:
    """The store of torchrun's agent, which outlives the processes; None without torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
        timeout=_RENDEZVOUS_TIMEOUT,
    )  # fmt: skip
    return PrefixStore(_STORE_PREFIX, store)


def rendezvous(store: Store, rank: int, world_size: int, poll_seconds: float = 1.0) -> Store:
    """A prefix store for the processes of this attempt; collective.

    Rank 0 sets a new name for the attempt. Other ranks may read the name of a failed attempt. Each
    therefore sets a token under the name, and only a live rank 0 returns the tokens.

    Args:
        store: the store of all attempts.
        rank: the rank of this process.
        world_size: number of processes.
        poll_seconds: seconds to wait for the answer before the name is read again.

    Raises:
        TimeoutError: rank 0 does not answer within half an hour.
    """
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("attempt", name)
        tokens = [store.get(f"{name}/token/{i}").decode() for i in range(1, world_size)]
        store.set(f"{name}/answer", json.dumps(tokens))
        return PrefixStore(name, store)
    token = uuid.uuid4().hex
    deadline = time.monotonic() + _RENDEZVOUS_TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        name = store.get("attempt").decode()
        store.set(f"{name}/token/{rank}", token)
        try:
            store.wait([f"{name}/answer"], timedelta(seconds=poll_seconds))
        except DistStoreError:
            continue
        if json.loads(store.get(f"{name}/answer"))[rank - 1] == token:
            return PrefixStore(name, store)
        time.sleep(poll_seconds / 20)  # until rank 0 of this attempt sets the name
    raise TimeoutError(f"rank 0 has not answered rank {rank} within {_RENDEZVOUS_TIMEOUT}")
