"""Toy plug-ins as a user would write them: LoRA, a linear layer stored as int8, batch orders."""

import contextlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniformer import registry
from miniformer.data.batching.order import BatchOrder
from miniformer.model.embedding import Input
from miniformer.model.matrices import weight_matrices


class LoRALinear(nn.Linear):
    """A linear layer plus a trained product of two thin matrices (Hu et al. 2021)."""

    def __init__(self, base, rank):
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(torch.randn_like(base.weight[:rank]) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros_like(base.weight[:, :rank]))

    def effective_weight(self):
        return self.weight + self.lora_b @ self.lora_a

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b)


def lora(model, rank=2, targets=("q_proj", "v_proj")):
    """Adds LoRA to matrices by their last name; all other weights are frozen."""
    model.requires_grad_(False)
    for matrix in list(weight_matrices(model)):
        parent, _, name = matrix.name.rpartition(".")
        if name in targets:
            setattr(model.get_submodule(parent), name, LoRALinear(matrix.module, rank))
    return model


class Int8Linear(nn.Module):
    """A linear layer that holds int8 values and a scale for each row, and no parameter."""

    def __init__(self, base):
        super().__init__()
        scale = base.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("values", (base.weight.detach() / scale).round().to(torch.int8))
        self.bias = base.bias

    def effective_weight(self):
        return self.values.to(self.scale.dtype) * self.scale

    def forward(self, x):
        return F.linear(x, self.effective_weight(), self.bias)


def int8_layers(model):
    """Replaces the matrices of layers by int8 ones."""
    for matrix in list(weight_matrices(model)):
        if matrix.layer is not None:
            parent, _, name = matrix.name.rpartition(".")
            setattr(model.get_submodule(parent), name, Int8Linear(matrix.module))
    return model


class Int8Storage:
    """Stored type of a matrix: int8 values with a scale for each row, or for `group` columns."""

    @staticmethod
    def encode(weight, group=None):
        groups = weight.float().reshape(len(weight), -1, group or weight.shape[1])
        scale = groups.abs().amax(2, keepdim=True).clamp_min(1e-12) / 127
        values = (groups / scale).round().to(torch.int8).reshape(weight.shape)
        return {"values": values, "scale": scale[..., 0]}

    @staticmethod
    def decode(tensors, group=None):
        values, scale = tensors["values"], tensors["scale"]
        return (values.reshape(*scale.shape, -1) * scale[..., None]).reshape(values.shape)


def store_int8(model, **options):
    """Stores the matrices of layers as int8; the model in memory stays as it is."""
    names = [matrix.name for matrix in weight_matrices(model) if matrix.layer is not None]
    model.weight_storage = {name: {"type": "int8", **options} for name in names}
    return model


class ShortFirst(BatchOrder):
    """Curriculum: the share of batches in use, short ones first, grows (Platanios et al. 2019)."""

    def __init__(self, batches=20, start=0.2, column="ids"):
        self.batches, self.start, self.column, self.num_served = batches, start, column, 0

    def plan(self, context):
        lengths = context.chunk.lengths(self.column)
        plans = sorted(context.plan_batches(), key=lambda rows: lengths[rows].max())
        done = min(1.0, self.num_served / self.batches)
        share = math.sqrt(done * (1 - self.start**2) + self.start**2)
        plans = plans[: math.ceil(share * len(plans))]
        context.rng.shuffle(plans)
        self.num_served += len(plans)
        return plans

    def state_dict(self):
        return {"num_served": self.num_served}

    def load_state_dict(self, state):
        self.num_served = state["num_served"]


class Poisson(BatchOrder):
    """Each row is in a step independently with probability `q`, as private training needs it."""

    whole_epochs = True

    def __init__(self, q):
        if not 0 < q <= 1:
            raise ValueError(f"q must be above 0 and at most 1, not {q}")
        self.q = q

    def plan(self, context):
        rows, plans = context.rows(), []
        for _ in range(round(1 / self.q)):
            sample = rows[context.rng.random(len(rows)) < self.q]
            plans += np.array_split(sample, context.world_size)
        return plans


class Reverse(BatchOrder):
    """The batches of the default order from the last to the first one."""

    def plan(self, context):
        return context.plan_batches()[::-1]


class Frames(Input):
    """Windows of `size` vectors, every `stride`: an input that shortens the sequence."""

    def __init__(self, config, size=4, stride=None):
        super().__init__()
        self.size, self.stride = size, stride or size
        if self.stride > size:
            raise ValueError(f"stride must be at most size={size}, not {stride}")
        self.proj = nn.Linear(size * config.input_dim, config.d_model)

    def windows(self, x, value):
        """[B, T, ...] -> [B, N, ..., size]; the last window is padded with `value`."""
        missing = (-(x.shape[1] - self.size)) % self.stride if x.shape[1] > self.size else 0
        missing = max(missing, self.size - x.shape[1])
        padding = x.new_full((len(x), missing, *x.shape[2:]), value)
        return torch.cat((x, padding), 1).unfold(1, self.size, self.stride)

    def forward(self, inputs):
        return self.proj(self.windows(inputs, 0).flatten(2))

    def output_mask(self, mask):
        """A window is real if it has vectors that no window before it has."""
        new = self.windows(mask, False)[..., -self.stride :]
        first = mask[:, :1]
        return torch.cat((first, new.any(-1)[:, 1:]), 1)

    def max_inputs(self, max_vectors):
        return self.size + (max_vectors - 1) * self.stride


COMPONENTS = {
    "batch_order": {"reverse": Reverse, "short_first": ShortFirst, "poisson": Poisson},
    "transform": {"lora": lora, "int8_layers": int8_layers, "store_int8": store_int8},
    "weight_storage": {"int8": Int8Storage},
    "input": {"frames": Frames},
}


@contextlib.contextmanager
def registered(components=COMPONENTS):
    """Context in which components are registered, by kind and name, as by `miniformer.register`."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, of_kind in components.items():
            patch.setitem(registry._registered, kind, of_kind)
        yield
