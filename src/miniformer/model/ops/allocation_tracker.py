"""Tracking of tensor allocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_storage_ref: Callable[[Any], Any] = StorageWeakRef  # StorageWeakRef is untyped


class AllocationTracker(TorchDispatchMode):
    """Tracks live and peak bytes of tensors made in forward and backward passes.

    Temporary buffers inside an operation are not tracked.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[Any, int] = {}  # weak reference to a storage -> its bytes
        self._total_bytes: int = 0  # of `_live`, including freed storages not yet removed
        self.peak_bytes: int = 0

    def live_bytes(self) -> int:
        """Returns bytes of the tensors that are in memory."""
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        self._total_bytes = sum(self._live.values())
        return self._total_bytes

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        inputs = {
            _storage_ref(tensor.untyped_storage())
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = _storage_ref(tensor.untyped_storage())
                if storage not in inputs:  # neither a view nor changed in place
                    self._total_bytes -= self._live.get(storage, 0)
                    self._live[storage] = size = int(tensor.untyped_storage().nbytes())
                    self._total_bytes += size
        # Freed storages are removed only at a new peak: it takes a pass over all storages.
        if self._total_bytes > self.peak_bytes:
            self.peak_bytes = max(self.peak_bytes, self.live_bytes())
        return out
