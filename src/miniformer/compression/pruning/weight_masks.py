"""The callback `weight_masks`: weights that are zero when training starts stay zero.

After each optimizer step the masked weights are set to zero, whatever the optimizer has made of
them (momentum, orthogonal updates of Muon, weight decay). Their gradients are zero too, so they
count for no gradient norm; only FSDP, which shards gradients, keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from miniformer.compression.calibration.model import is_calibrated
from miniformer.config import UserError
from miniformer.model.matrices import weight_matrices


class MaskedWeights:
    """Parameters of which some weights are zero.

    Args:
        parameters: matrices by name.
        zeros: masks of the weights that are zero, bool tensors of the shape of each (of a sharded
            one, of its own part). They may be changed in place.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], zeros: Mapping[str, Tensor]) -> None:
        self.parameters, self.zeros = dict(parameters), dict(zeros)
        self._handles: list[Any] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Applies the masks to gradients, and to weights after each step of an optimizer."""
        for name, parameter in self.parameters.items():
            if not isinstance(parameter, DTensor):
                hook: Any = parameter.register_hook
                self._handles.append(hook(self._gradient_hook(name)))
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self.apply()))

    def detach(self) -> None:
        """Ends what `attach` does."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def apply(self) -> None:
        """Sets the masked weights to zero."""
        for name, parameter in self.parameters.items():
            local_part(parameter).masked_fill_(self.zeros[name], 0.0)

    def _gradient_hook(self, name: str) -> Any:
        return lambda gradient: gradient.masked_fill(self.zeros[name], 0.0)


class WeightMasks(L.Callback):
    """Keeps the zeros of linear layers within the layers of a model in training.

    The masks follow from the weights at the start of the run, and of a resumed one from those of
    its checkpoint, which has the same zeros.

    Args:
        matrices: names such as `layers.0.attention.q_proj`, or their last part, such as `q_proj`;
            None: all linear layers within the layers.

    Raises:
        UserError: in a run, a name is that of no such layer, no weight is zero, or the strategy is
            deepspeed.
    """

    def __init__(self, matrices: Sequence[str] | None = None) -> None:
        self.matrices = None if matrices is None else [*matrices]
        self.masked: MaskedWeights | None = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Takes the masks, after the weights of a resumed run are restored."""
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise UserError(
                "weight_masks: strategy=deepspeed keeps copies of the weights; use ddp or fsdp2"
            )
        parameters = masked_parameters(module.model, self.matrices)
        zeros = {name: local_part(x) == 0 for name, x in parameters.items()}
        self.masked = MaskedWeights(parameters, zeros)
        self.masked.attach(trainer.optimizers[0])

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        """Ends the masks."""
        if self.masked is not None:
            self.masked.detach()

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """Ends the masks."""
        if self.masked is not None:
            self.masked.detach()


def masked_parameters(
    model: nn.Module, names: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Trained matrices of linear layers within the layers that have zeros, by name.

    Args:
        model: the model.
        names: see `WeightMasks`.

    Raises:
        UserError: a name is that of no such layer, or no weight is zero.
    """
    linear = {x.name: x.parameter for x in weight_matrices(model) if is_calibrated(x)}
    for name in names or ():
        if name not in linear and name not in {full.rpartition(".")[2] for full in linear}:
            kinds = ", ".join(sorted({full.rpartition(".")[2] for full in linear}))
            raise UserError(f"weight_masks: {name!r} is no linear layer; those are {kinds}")
    result = {
        name: parameter
        for name, parameter in linear.items()
        if parameter is not None and parameter.requires_grad
        and (names is None or name in names or name.rpartition(".")[2] in names)
        and (parameter.detach() == 0).any()
    }  # fmt: skip
    if not result:
        raise UserError(
            "weight_masks: no weight is zero; prune the model first (miniformer prune --sparsity), "
            "and train it with init_from"
        )
    return result


def local_part(parameter: Tensor) -> Tensor:
    """The part of a parameter on this device, [rows, I]; of a whole one, its data."""
    return parameter.detach() if not isinstance(parameter, DTensor) else parameter.to_local()
