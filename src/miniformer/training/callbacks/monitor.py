"""What is worth watching beside the loss: memory, gradients layer by layer, the machine's peak."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import lightning as L
import torch

import miniformer
from miniformer.config.estimates import forward_flops
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import find_token_tensors
from miniformer.training.callbacks.grad_norms import GradientNorms
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.setup.prepare import RunSetup, resolve_device_type
from miniformer.training.tuning.hardware import peak_flops
from miniformer.training.tuning.memory_tracker import peak_memory
from miniformer.utils.jsonl import append_row, is_due, read_rows

_MAX_ROWS = 100  # measurements of the gradients of all layers over a run, about


class RunMonitor(L.Callback):
    """Measures memory, and the gradients of each layer.

    Args:
        run: what is trained.
        module: that trains it.
        folder: of the run, for `gradients.jsonl`.
        kind: float32 or bf16, in which matrices are multiplied.
        writes: whether this device writes files.
    """

    def __init__(
        self,
        run: RunSetup,
        module: MiniFormerLitModule,
        folder: Path,
        *,
        precision: str,
        is_global_zero: bool,
    ) -> None:
        self.run, self.module, self.is_global_zero, self.precision = (
            run,
            module,
            is_global_zero,
            precision,
        )
        self.path = folder / "gradients.jsonl"
        self.rows: list[dict[str, float]] = []
        self.device = torch.device(resolve_device_type(run.config))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # Of this device; on several of them all rates are those of all.
        self.peak_flops = peak_flops(self.device, dtype) * run.config.world_size
        self._grad_norms = GradientNorms(run.model)
        self._recorded_progress = -1.0

    def train_flops(self, batch: Batch) -> float:
        """FLOPs that training takes for a batch: of each forward pass, and twice that back.

        Matrix products of real tokens only; the attention of packed rows counts as that of whole
        ones.
        """
        about, rows = batch["about"], row_lengths(batch, self.run.task.token_tensors)
        count = forward_flops(
            self.run.model_config,
            tokens=about["tokens"] - about["targets"],
            length=rows[0],
            head_tokens=about["predicted"],
            target_tokens=about["targets"],
            target_length=rows[-1],
        )
        return 3.0 * self.run.task.num_forward_passes * count

    def metrics(self) -> dict[str, float]:
        """Memory at its highest so far, in MB."""
        return {"memory_mb": round(self.peak_memory_bytes() / 1e6, 1)}

    def system_info(self) -> dict[str, str]:
        """About the machine and what runs on it."""
        name = platform.processor() or platform.machine()
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        many = self.run.config.world_size
        return {
            "device": f"{self.device.type} ({name}), {torch.get_num_threads()} threads"
            + (f", {many} processes" if many > 1 else ""),
            "measured peak": f"{self.peak_flops / 1e9:,.0f} GFLOP/s in {self.precision}",
            "versions": f"Miniformer {miniformer.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}",
        }

    def peak_memory_bytes(self) -> int:
        """Bytes at most so far: of tensors on a GPU, else of this process."""
        return peak_memory(self.device)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        progress = module.progress
        if not is_due(progress, self._recorded_progress, _MAX_ROWS):
            return
        self._recorded_progress = progress
        norms = self._grad_norms.compute()
        limit, norm = module.gradient_clip_val, module.gradient_norm
        if limit and norm is not None:  # as they were before they were clipped
            longer = max(1.0, float(norm) / limit)
            norms = {name: value * longer for name, value in norms.items()}
        self.rows.append({"step": trainer.global_step + 1, **norms})
        if not self.is_global_zero:
            return
        append_row(self.path, self.rows[-1])
        named = {f"grad_norm/{name}": value for name, value in norms.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows), "written": self._recorded_progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recorded_progress = state["written"]
        self.rows = read_rows(self.path, state["rows"], truncate=self.is_global_zero)


def row_lengths(batch: Batch, declared: dict[str, str] | None = None) -> list[int]:
    """The length of a batch's rows, and with a decoder that of its targets' rows.

    Args:
        batch: any task's.
        declared: `Task.token_tensors`.
    """
    return [batch[name].shape[1] for name in find_token_tensors(batch, declared)] or [1]
