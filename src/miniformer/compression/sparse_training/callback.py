"""The callback `sparse_training`: masks around each optimizer step.

before a step   RigL changes the masks, or movement pruning adds to its scores; gradients are masked
after a step    weights outside of the masks are zero again; movement pruning changes the masks
validation      the weights that are validated and saved are those with zeros, averages too

Masks and scores are in the state of the run. With several devices all ranks compute the same masks,
since their gradients are reduced before the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from miniformer.compression.sparse_training.densities import weight_counts
from miniformer.compression.sparse_training.matrices import (
    SparseMatrix,
    largest,
    sparse_matrices,
)
from miniformer.compression.sparse_training.movement import Movement
from miniformer.compression.sparse_training.rigl import RigL
from miniformer.config.sparse_training import SparseTrainingConfig
from miniformer.training.callbacks.early_stopping import EarlyStopping
from miniformer.training.callbacks.validation import BestModelCheckpoint, WeightAveraging
from miniformer.training.distributed import strategies


class SparseTraining(L.Callback):
    """Trains the matrices of the layers with zeros.

    Args:
        **settings: fields of `SparseTrainingConfig`.

    Raises:
        UserError: a setting is unknown or out of range.
    """

    def __init__(self, **settings: Any) -> None:
        self.config = SparseTrainingConfig.from_dict(settings)
        self.matrices: list[SparseMatrix] = []
        self.method: RigL | Movement | None = None
        self.is_final = False  # the matrices have as many weights as at the end
        self.is_fixed = False  # masks are those of loaded weights, and change no more
        self._packed: dict[str, Tensor] = {}  # bits of the masks by name of the matrix
        self._restored: dict[str, Any] = {}  # state of a checkpoint, until training starts
        self._module: Any = None
        self._hooks: list[Any] = []

    @property
    def sparsity(self) -> float:
        """Share of the weights of the matrices that are zero now."""
        masks = [matrix.mask for matrix in self.matrices]
        return 1 - sum(int(x.sum()) for x in masks) / max(1, sum(x.numel() for x in masks))

    def setup(self, trainer: L.Trainer, module: Any, stage: str) -> None:
        if stage == "fit":
            strategies.require_replicated_model(module, "sparse_training", "use ddp")

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self._module, self.matrices = module, sparse_matrices(module.model)
        counts = self._counts()
        is_rigl = self.config.method == "rigl"
        self.method = (
            RigL(self.config, counts, torch.initial_seed())
            if is_rigl
            else Movement(self.config, counts)
        )
        optimizer = trainer.optimizers[0]
        if self._restored:
            self._restore(self._restored)
        elif isinstance(self.method, RigL):
            averages = self._averages(trainer)
            for matrix, count in zip(self.matrices, counts, strict=True):
                matrix.set_mask(self.method.first_mask(matrix, count), optimizer, averages)
        self._restored = {}
        self._note_masks()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @torch.no_grad()
    def _before_step(self, *args: Any) -> None:
        method, trainer = self.method, self._module.trainer
        if isinstance(method, Movement):
            for matrix in self.matrices:
                method.add_scores(matrix)
        elif method is not None and method.is_due(trainer.global_step, self._module.progress):
            self._change_masks(method, trainer)
        for matrix in self.matrices:
            matrix.mask_gradient()

    @torch.no_grad()
    def _after_step(self, *args: Any) -> None:
        for matrix in self.matrices:
            matrix.apply_mask()

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        method = self.method
        if (
            isinstance(method, Movement)
            and module.between_steps
            and method.is_due(trainer.global_step, module.progress, self.is_final)
        ):
            self._change_masks(method, trainer)

    def _change_masks(self, method: RigL | Movement, trainer: L.Trainer) -> None:
        if self.is_fixed:
            return
        progress, averages = self._module.progress, self._averages(trainer)
        for matrix, count in zip(self.matrices, method.counts, strict=True):
            mask = method.new_mask(matrix, count, progress)
            matrix.set_mask(mask, trainer.optimizers[0], averages)
        self._note_masks()
        for logger in trainer.loggers:
            logger.log_metrics({"sparsity": self.sparsity}, step=trainer.global_step)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.state.fn != "fit" or not self.matrices:
            return
        if not self.is_final:  # a model with fewer zeros is no candidate
            _forget_validations(trainer)
        if any(bool((x.weight.masked_fill(x.mask, 0.0) != 0).any()) for x in self.matrices):
            self._adopt(trainer)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self._remove_hooks()
        if not self.is_final and trainer.is_global_zero:
            warnings.warn(
                f"sparse_training: the run ended with {100 * self.sparsity:.1f} % zeros, before "
                f"the sparsity of {100 * self.config.sparsity:g} %; set a smaller end "
                "or interval",
                stacklevel=1,  # Lightning calls, whose warnings are hidden
            )

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _counts(self) -> list[int]:
        """Number of weights of each matrix at the end."""
        shapes = [(x.mask.shape[0], x.mask.shape[1]) for x in self.matrices]
        return weight_counts(shapes, self.config.sparsity, self.config.uses_erk)

    def _averages(self, trainer: L.Trainer) -> dict[str, Tensor]:
        """Averages of weights that the run holds, by names that end with those of parameters."""
        return {
            f"{kind}.{name}": tensor
            for callback in _callbacks(trainer, WeightAveraging)
            for kind, average in callback.averages.items()
            for name, tensor in average.state_tensors().items()
        }

    def _adopt(self, trainer: L.Trainer) -> None:
        """Takes the masks of weights that early stopping has loaded; they change no more.

        Each mask has as many weights as before, since a loaded weight may be zero by chance.
        """
        self.is_fixed = True
        for matrix in self.matrices:
            order = 2.0 * (matrix.weight != 0) + matrix.mask
            mask = largest(order, int(matrix.mask.sum()))
            matrix.set_mask(mask, trainer.optimizers[0], self._averages(trainer))
            if isinstance(self.method, Movement):
                self.method.removed[matrix.name].masked_fill_(mask, 0.0)
        self._note_masks()

    def _note_masks(self) -> None:
        """Derives from the masks what would take time in each step."""
        self._packed = {
            matrix.name: torch.from_numpy(np.packbits(matrix.mask.cpu().numpy()))
            for matrix in self.matrices
        }
        pairs = zip(self.matrices, self._counts(), strict=True)
        self.is_final = all(int(matrix.mask.sum()) == count for matrix, count in pairs)

    def state_dict(self) -> dict[str, Any]:
        if not self.matrices:
            return self._restored
        state: dict[str, Any] = {"masks": self._packed, "is_fixed": self.is_fixed}
        if isinstance(self.method, Movement):
            state |= {"scores": self.method.scores, "removed": self.method.removed}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state

    def _restore(self, state: dict[str, Any]) -> None:
        self.is_fixed = state["is_fixed"]
        for matrix in self.matrices:
            bits = np.unpackbits(state["masks"][matrix.name].numpy(), count=matrix.mask.numel())
            mask = torch.from_numpy(bits.astype(bool)).view(matrix.mask.shape)
            matrix.mask = mask.to(matrix.mask.device)
        if isinstance(self.method, Movement):
            device = self.matrices[0].mask.device
            for name in ("scores", "removed"):
                tensors = {key: value.to(device) for key, value in state[name].items()}
                setattr(self.method, name, tensors)


def _callbacks(trainer: L.Trainer, kind: type) -> Iterator[Any]:
    """The callbacks of a Trainer of one class."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, kind):
            yield callback


def _forget_validations(trainer: L.Trainer) -> None:
    """Makes the next validation the first one for the best model and for early stopping."""
    for best in _callbacks(trainer, BestModelCheckpoint):
        best.best_metrics = None
    for stopping in _callbacks(trainer, EarlyStopping):
        if stopping.stop_step is None:
            state = stopping.state_dict()
            step = state["best"][0]
            stopping.load_state_dict({**state, "validations": [0, 0], "best": [step, {}]})
