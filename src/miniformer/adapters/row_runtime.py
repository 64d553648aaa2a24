"""Decoding of a batch whose rows have different adapters, with the modules of the model.

Letters: R rows, T prompt length, N new tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from miniformer.adapters.modules import Adapted
from miniformer.config import GenerationConfig, UserError
from miniformer.generation.runtime import PlainRuntime, Runtime


class RowRuntime(PlainRuntime):
    """Runtime whose rows keep their adapters when rows are selected, copied or removed.

    Args:
        model: a model that has an adapter in use for each row.
        memory: encoder outputs of an encoder-decoder model, otherwise empty.
        selection: name or None of each row, [R].
        cache_kind: kind of cache; None: that of `PlainRuntime`.
    """

    def __init__(
        self,
        model: Any,
        memory: Sequence[Any],
        selection: tuple[str | None, ...],
        cache_kind: str | None = None,
    ) -> None:
        super().__init__(model, memory, cache_kind)
        self._selection = selection
        self._modules = [module for module in model.modules() if isinstance(module, Adapted)]

    def prefill(
        self,
        ids: Tensor,
        mask: Tensor | None,
        max_new_tokens: int,
        *,
        trimmable: bool = False,
        capacity: int | None = None,
    ) -> Tensor:
        """Implements `Runtime.prefill`."""
        if len(ids) != len(self._selection):
            raise UserError(
                f"the batch has {len(ids)} rows, but adapters are in use for "
                f"{len(self._selection)}; call adapters.use with a name for each row"
            )
        with self._rows_in_use():
            return super().prefill(
                ids, mask, max_new_tokens, trimmable=trimmable, capacity=capacity
            )

    def append(self, tokens: Tensor, *, last_only: bool = False) -> Tensor:
        """Implements `Runtime.append`."""
        with self._rows_in_use():
            return super().append(tokens, last_only=last_only)

    def step_layers(self, tokens: Tensor, num_layers: int) -> Tensor:
        """Implements `Runtime.step_layers`."""
        with self._rows_in_use():
            return super().step_layers(tokens, num_layers)

    def select(self, rows: Tensor, copies: int = 1) -> None:
        """Implements `Runtime.select`.

        Copies of a prompt do not share its source, so that each call of a module has all rows.
        """
        super().select(rows)
        self._selection = tuple(self._selection[row] for row in rows.tolist())

    def insert(self, rows: Tensor, runtime: Runtime) -> None:
        """Implements `Runtime.insert`."""
        super().insert(rows, runtime)
        assert isinstance(runtime, RowRuntime)
        selection = [*self._selection]
        for row, name in zip(rows.tolist(), runtime._selection, strict=True):
            selection[row] = name
        self._selection = tuple(selection)

    @contextlib.contextmanager
    def _rows_in_use(self) -> Iterator[None]:
        """Context in which the modules have the adapters of the rows that are left.

        The selection of the model is that of the whole batch before and after.
        """
        earlier = [module.selection for module in self._modules]
        for module in self._modules:
            module.selection = self._selection
        try:
            yield
        finally:
            for module, selection in zip(self._modules, earlier, strict=True):
                module.selection = selection


def make_row_runtime(
    model: Any, memory: Sequence[Any], options: GenerationConfig
) -> RowRuntime | None:
    """Creates the runtime of a model; None: all rows have the same weights.

    Raises:
        UserError: an option needs another runtime.
    """
    state = vars(model).get("adapter_state")
    selection = None if state is None else state.selection
    if not isinstance(selection, tuple):
        return None
    if options.cuda_graph or options.converts_weights:  # of runtimes with one weight
        name = "cuda_graph=true" if options.cuda_graph else f"weight_dtype={options.weight_dtype}"
        raise UserError(f"{name} needs one adapter for all rows; leave it out, or use one adapter")
    return RowRuntime(model, memory, selection, options.cache_kind)
