"""Distributed helpers for manual optimization: gradient sync, reduction, gradient clipping.

| strategy  | in Lightning                       | held by a rank                        |
|-----------|------------------------------------|---------------------------------------|
| ddp       | DDPStrategy                        | the full model                        |
| fsdp2     | ModelParallelStrategy, fully_shard | shards of weights, gradients, states  |
| deepspeed | DeepSpeedStrategy, ZeRO stage 2    | shards of gradients and states        |

All strategies average gradients over ranks. The loss of a step is one sum over all ranks that is
divided once, hence the `world_size` in `normalize_and_clip_grads`. On one device the helpers have
no effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from miniformer.config import UserError
from miniformer.config.train_settings import HardwareSettings, OptimizationSettings
from miniformer.model.layers import DecoderLayer, EncoderLayer
from miniformer.tasks.base import BatchStats
from miniformer.training.callbacks.budget import Budget


def make_strategy(
    hardware: HardwareSettings,
    optimization: OptimizationSettings,
    device_type: str,
    batch_size: int | None,
) -> Any:
    """Lightning's strategy for a run.

    Raises:
        UserError: the strategy does not support the optimizer or the machine.
    """
    if hardware.world_size == 1:
        return "auto"
    backend = "nccl" if device_type == "cuda" else "gloo"
    if hardware.strategy == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=hardware.world_size,
            tensor_parallel_size=1,
            process_group_backend=backend,
        )
    if hardware.strategy == "deepspeed":
        return _deepspeed_strategy(optimization, device_type, batch_size)
    return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)


def _deepspeed_strategy(
    optimization: OptimizationSettings, device_type: str, batch_size: int | None
) -> Any:
    if device_type != "cuda":
        raise UserError("strategy=deepspeed needs CUDA devices; use ddp or fsdp2")
    if optimization.optimizer == "muon":
        raise UserError(
            "strategy=deepspeed splits matrices, and optimizer=muon needs full ones; "
            "set optimizer=adamw"
        )
    try:
        import deepspeed  # type: ignore[import-not-found] # noqa: F401
    except ImportError:
        raise UserError(
            'strategy=deepspeed needs the package deepspeed; pip install "miniformer[deepspeed]", '
            "or use ddp or fsdp2"
        ) from None
    from lightning.pytorch.strategies import DeepSpeedStrategy

    return DeepSpeedStrategy(
        config={
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": optimization.gradient_clip_val,
            "train_micro_batch_size_per_gpu": batch_size,
        }
    )


def apply_fsdp(module: Any) -> None:
    """Shards the loss module layer by layer if the strategy is FSDP2."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    loss_module = module.loss_module
    if not isinstance(module.trainer.strategy, ModelParallelStrategy):
        return
    if isinstance(loss_module, FSDPModule):  # already sharded: a test after training
        return
    mesh = module.device_mesh["data_parallel"]
    roles = {
        name: parameter.optimizer_role
        for name, parameter in loss_module.named_parameters()
        if hasattr(parameter, "optimizer_role")
    }
    for layer in loss_module.modules():
        if isinstance(layer, EncoderLayer | DecoderLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(loss_module, mesh=mesh)
    for name, parameter in loss_module.named_parameters():  # which are new
        if name in roles:
            parameter.optimizer_role = roles[name]
    register_fsdp_forward_method(loss_module, "eval_step")


@contextlib.contextmanager
def grad_sync(module: Any, enabled: bool) -> Iterator[None]:
    """Context in which gradients are reduced over ranks, or not if `enabled` is False."""
    strategy = module.trainer.strategy
    if enabled or module.trainer.world_size == 1:
        yield
    elif isinstance(strategy, ModelParallelStrategy):
        module.loss_module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.loss_module.set_requires_gradient_sync(True)
    else:
        with strategy.block_backward_sync():
            yield


def backward_loss(module: Any, loss: Tensor, count: Tensor) -> Tensor:
    """Loss for the backward pass: the sum; the mean for DeepSpeed, which scales gradients."""
    if not _uses_deepspeed(module):
        return loss
    total: Tensor = module.trainer.strategy.reduce(count.detach().to(loss), reduce_op="sum")
    mean: Tensor = loss * module.trainer.world_size / total.clamp_min(1e-12)
    return mean


def all_reduce_step_stats(
    module: Any, sums: Tensor, token_counts: list[int], budget: Budget, should_stop: bool
) -> tuple[Tensor, list[int], bool]:
    """Reduces the statistics of a step over all ranks.

    Args:
        module: the LightningModule.
        sums: [2], summed loss and the count that it sums over.
        token_counts: tokens and padding.
        budget: its clock is set to that of rank 0.
        should_stop: this rank requests a stop.
    """
    if module.trainer.world_size == 1:
        return sums, token_counts, should_stop
    clock = budget.local_seconds if module.trainer.is_global_zero else 0.0
    local = torch.cat([sums, sums.new_tensor([*token_counts, clock, should_stop])])
    dist.all_reduce(local)
    tokens, padding, seconds, stops = local[2:].tolist()
    budget.synced_seconds = seconds
    return local[:2], [int(tokens), int(padding)], stops > 0


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors of one type, in place, by their sums over all ranks; collective."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    totals = torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors])
    for tensor, total in zip(tensors, totals, strict=True):
        tensor.copy_(total.view_as(tensor))


def average_over_ranks(gradients: Sequence[Tensor]) -> None:
    """Replaces gradients by their means over all ranks, as DDP does; collective."""
    sum_over_ranks(gradients)
    torch._foreach_div_(list(gradients), dist.get_world_size())


def require_replicated_model(module: Any, feature: str, fix: str) -> None:
    """Raises a UserError if the model is not whole on each device."""
    if isinstance(module.trainer.strategy, ModelParallelStrategy) or _uses_deepspeed(module):
        raise UserError(f"{feature} needs the whole model on each device: {fix}")


def normalize_and_clip_grads(module: Any, count: Tensor, max_norm: float) -> Tensor | None:
    """Divides gradients by the count of their loss and clips; returns the norm before, or None."""
    if _uses_deepspeed(module):
        return None
    gradients = [p.grad for p in module.model.parameters() if p.grad is not None]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
        gradients = [gradient.to_local() for gradient in gradients]
    scale: Tensor = module.trainer.world_size / count.to(norm)
    norm = norm * scale
    if max_norm:
        scale = scale * (max_norm / (norm + 1e-6)).clamp_max(1.0)
    torch._foreach_mul_(gradients, scale)
    return norm


@contextlib.contextmanager
def unsharded_params(loss_module: nn.Module) -> Iterator[None]:
    """Context in which sharded weights are gathered on every rank.

    Ranks generate texts of different lengths, so their numbers of forward passes differ, and a
    forward pass must not be collective.
    """
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in loss_module.modules() if isinstance(module, FSDPModule)]
    # The root is not resharded after forward.
    layers = [unit for unit in units if unit is not loss_module]
    try:
        for unit in units:
            unit.unshard()
        for unit in layers:
            unit.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for unit in layers:
            unit.set_reshard_after_forward(True, recurse=False)
        for unit in units:
            unit.reshard()


def all_gather_stats(module: Any, stats: list[BatchStats]) -> list[BatchStats]:
    """Batch statistics of all ranks."""
    if module.trainer.world_size == 1:
        return stats
    local = [
        {name: x.cpu() if isinstance(x, Tensor) else x for name, x in batch_stats.items()}
        for batch_stats in stats
    ]
    return [batch_stats for rank_stats in all_gather_object(local) for batch_stats in rank_stats]


def all_gather_object(value: Any) -> list[Any]:
    """The values of all ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's unsharded weights on every rank; collective."""
    return {name: full_tensor(tensor.detach()) for name, tensor in model.state_dict().items()}


def full_tensor(tensor: Tensor) -> Tensor:
    """An unsharded tensor; collective for a DTensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor with the sharding and device of another one."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


@torch.no_grad()
def load_full_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads unsharded weights into a model that may be sharded."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(shard_like(state_dict[name], tensor))


def _uses_deepspeed(module: Any) -> bool:
    return type(module.trainer.strategy).__name__ == "DeepSpeedStrategy"
