"""The tensors that a computation makes, and how long they live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_storage_ref: Callable[[Any], Any] = StorageWeakRef  # which has no types of its own


class AllocationTracker(TorchDispatchMode):
    """Notes every tensor that is made, in forward and backward pass, and when it is gone again.

    What an operation uses for itself only is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[Any, int] = {}  # weak reference to a storage -> its bytes
        self._total_bytes: int = 0  # of those; some may be gone
        self.peak_bytes: int = 0  # bytes that were there at one time, at most

    def live_bytes(self) -> int:
        """Bytes that are there now."""
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        self._total_bytes = sum(self._live.values())
        return self._total_bytes

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {
            _storage_ref(tensor.untyped_storage())
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = _storage_ref(tensor.untyped_storage())
                if storage not in given:  # no view, and not changed in place
                    self._total_bytes -= self._live.get(storage, 0)
                    self._live[storage] = size = int(tensor.untyped_storage().nbytes())
                    self._total_bytes += size
        # The dead are looked for only where they matter: each look goes through all there are.
        if self._total_bytes > self.peak_bytes:
            self.peak_bytes = max(self.peak_bytes, self.live_bytes())
        return out
