"""Groups of processes that torchrun restarts: each attempt meets on its own.

torchrun's agent has one key-value store for all attempts of a group. What an attempt tells of
itself there, such as its addresses, must have names that no other attempt uses.
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
_RENDEZVOUS_TIMEOUT = timedelta(minutes=30)  # until all processes have come; torch's own


def agent_store() -> Store | None:
    """The store of torchrun's agent, which outlives the processes; None: there is none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
        timeout=_RENDEZVOUS_TIMEOUT,
    )  # fmt: skip
    return PrefixStore(_STORE_PREFIX, store)


def rendezvous(store: Store, rank: int, world_size: int, poll_seconds: float = 1.0) -> Store:
    """A part of a store for the processes of this attempt alone; all of them must call it.

    The first process names the attempt anew. The others may find the name of an attempt that has
    failed, so each puts a word of its own under it, which only a living first process answers.

    Args:
        store: for all attempts.
        rank: of this process.
        world_size: number of processes.
        wait: seconds for an answer before the name is looked up again.

    Raises:
        TimeoutError: the first process has not answered within half an hour.
    """
    if rank == 0:
        name = uuid.uuid4().hex
        store.set("attempt", name)
        words = [store.get(f"{name}/word/{other}").decode() for other in range(1, world_size)]
        store.set(f"{name}/answer", json.dumps(words))
        return PrefixStore(name, store)
    word, ends = uuid.uuid4().hex, time.monotonic() + _RENDEZVOUS_TIMEOUT.total_seconds()
    while time.monotonic() < ends:
        name = store.get("attempt").decode()
        store.set(f"{name}/word/{rank}", word)
        try:
            store.wait([f"{name}/answer"], timedelta(seconds=poll_seconds))
        except DistStoreError:
            continue
        if json.loads(store.get(f"{name}/answer"))[rank - 1] == word:
            return PrefixStore(name, store)
        time.sleep(poll_seconds / 20)  # until the first process of this attempt has named it
    raise TimeoutError(f"rank 0 has not answered rank {rank} within {_RENDEZVOUS_TIMEOUT}")
