"""Several devices: what Lightning's strategies leave to whoever takes the optimiser step by hand.

| strategy  | Lightning's                        | a device has                          |
|-----------|------------------------------------|---------------------------------------|
| ddp       | DDPStrategy                        | the whole model                       |
| fsdp2     | ModelParallelStrategy, fully_shard | a share of weights, gradients, states |
| deepspeed | DeepSpeedStrategy, ZeRO stage 2    | a share of gradients and states       |

All of them average gradients over devices, where the loss of a step is one sum over all devices,
divided once: hence the `world_size` in `divide_and_clip`. On one device nothing here does anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.model.layers import DecoderLayer, EncoderLayer
from miniformer.tasks.base import BatchStats
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.budget import Budget


def make_strategy(config: TrainConfig, device_type: str) -> Any:
    """Lightning's strategy for a run.

    Raises:
        UserError: the optimiser or the machine does not go with it.
    """
    if config.world_size == 1:
        return "auto"
    backend = "nccl" if device_type == "cuda" else "gloo"
    if config.strategy == "fsdp2":
        return ModelParallelStrategy(
            data_parallel_size=config.world_size,
            tensor_parallel_size=1,
            process_group_backend=backend,
        )
    if config.strategy == "deepspeed":
        return _deepspeed_strategy(config, device_type)
    return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)


def _deepspeed_strategy(config: TrainConfig, device_type: str) -> Any:
    if device_type != "cuda":
        raise UserError("strategy=deepspeed needs CUDA devices; use ddp or fsdp2")
    if config.optimizer == "muon":
        raise UserError(
            "strategy=deepspeed cuts matrices to pieces, which muon cannot do without; "
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
            "gradient_clipping": config.gradient_clip_val,
            "train_micro_batch_size_per_gpu": config.batch_size,
        }
    )


def apply_fsdp(module: Any) -> None:
    """Cuts weights among devices, layer by layer, where the strategy is to (FSDP2)."""
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    objective = module.loss_module
    if not isinstance(module.trainer.strategy, ModelParallelStrategy):
        return
    if isinstance(objective, FSDPModule):  # for a test after training
        return
    mesh = module.device_mesh["data_parallel"]
    for layer in objective.modules():
        if isinstance(layer, EncoderLayer | DecoderLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    register_fsdp_forward_method(objective, "eval_step")


@contextlib.contextmanager
def grad_sync(module: Any, enabled: bool) -> Iterator[None]:
    """Whether devices add up their gradients now; in between steps they need not."""
    strategy = module.trainer.strategy
    if enabled or module.trainer.world_size == 1:
        yield
    elif isinstance(strategy, ModelParallelStrategy):
        module.loss_module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.loss_module.set_requires_gradient_sync(True)
    elif isinstance(strategy.model, nn.parallel.DistributedDataParallel):
        with strategy.model.no_sync():
            yield
    else:
        yield


def backward_loss(module: Any, loss: Tensor, count: Tensor) -> Tensor:
    """The loss to go back from: a sum; DeepSpeed has its own hands on gradients, so divided."""
    if not _uses_deepspeed(module):
        return loss
    total: Tensor = module.trainer.strategy.reduce(count.detach().to(loss), reduce_op="sum")
    divided: Tensor = loss * module.trainer.world_size / total.clamp_min(1e-12)
    return divided


def all_reduce_step_stats(
    module: Any, sums: Tensor, token_counts: list[int], budget: Budget, should_stop: bool
) -> tuple[Tensor, list[int], bool]:
    """Adds up a step over all devices, so that all of them know the same of it.

    Args:
        module: the LitModule.
        sums: [2], summed loss and what it sums over.
        told: tokens and padding.
        budget: whose clock becomes that of the first device.
        stop: whether this device wants to stop.
    """
    if module.trainer.world_size == 1:
        return sums, token_counts, should_stop
    clock = budget.local_seconds if module.trainer.is_global_zero else 0.0
    mine = torch.cat([sums, sums.new_tensor([*token_counts, clock, should_stop])])
    dist.all_reduce(mine)
    tokens, padding, seconds, stops = mine[2:].tolist()
    budget.synced_seconds = seconds
    return mine[:2], [int(tokens), int(padding)], stops > 0


def normalize_and_clip_grads(module: Any, count: Tensor, max_norm: float) -> Tensor | None:
    """Divides gradients by what their loss sums over, then makes them `limit` long at most.

    Returns:
        Their norm before it was clipped, a scalar; None: nobody has it.
    """
    if _uses_deepspeed(module):
        return None
    gradients = [p.grad for p in module.model.parameters() if p.grad is not None]
    if not gradients:
        return None
    norms = torch._foreach_norm(gradients)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
        gradients = [each.to_local() for each in gradients]
    scale: Tensor = module.trainer.world_size / count.to(norm)
    norm = norm * scale
    if max_norm:
        scale = scale * (max_norm / (norm + 1e-6)).clamp_max(1.0)
    torch._foreach_mul_(gradients, scale)
    return norm


def eval_step(module: Any, batch: Batch, *, test: bool) -> BatchStats:
    """What the task says of a batch of validation, or of a test."""
    with _unsharded_params(module.loss_module):
        found: BatchStats = module.loss_module.eval_step(batch, test=test)
    return found


@contextlib.contextmanager
def _unsharded_params(loss_module: nn.Module) -> Iterator[None]:
    """Sharded weights are whole on every device, so that no pass waits for one of another device.

    Each rank writes its own texts, which takes as many passes as these are long.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in loss_module.modules() if isinstance(module, FSDPModule)]
    layers = [part for part in parts if part is not loss_module]  # the root stays whole by itself
    try:
        for part in parts:
            part.unshard()
        for part in layers:
            part.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for part in layers:
            part.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()


def all_gather_stats(module: Any, stats: list[BatchStats]) -> list[BatchStats]:
    """What all devices have measured."""
    if module.trainer.world_size == 1:
        return stats
    mine = [
        {name: x.cpu() if isinstance(x, Tensor) else x for name, x in each.items()}
        for each in stats
    ]
    everyone: list[Any] = [None] * module.trainer.world_size
    dist.all_gather_object(everyone, mine)
    return [each for one in everyone for each in one]


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, whole on every device; all devices must call it."""
    return {name: full_tensor(tensor.detach()) for name, tensor in model.state_dict().items()}


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor put together again of what devices have of it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut among devices as another one is."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


@torch.no_grad()
def load_full_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Gives a model weights that are whole on every device."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(shard_like(state_dict[name], tensor))


def _uses_deepspeed(module: Any) -> bool:
    return type(module.trainer.strategy).__name__ == "DeepSpeedStrategy"
