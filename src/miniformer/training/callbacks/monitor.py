"""Run monitor: memory, gradient norms by layer, and the peak FLOP/s of the machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import lightning as L
import torch

import miniformer
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import find_token_tensors
from miniformer.training.callbacks.grad_norms import GradientNorms
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.tuning.hardware import peak_flops
from miniformer.training.tuning.memory_tracker import peak_memory
from miniformer.utils.jsonl import append_row, is_due, read_rows

_MAX_ROWS = 100  # approximate number of rows in gradients.jsonl


class RunMonitor(L.Callback):
    """Measures memory and the gradient norm of each layer.

    Args:
        run: the resolved run.
        module: the LightningModule.
        folder: the run's folder, for `gradients.jsonl`.
        is_global_zero: rank 0, which writes files.
    """

    def __init__(
        self, run: RunSetup, module: MiniFormerLitModule, folder: Path, *, is_global_zero: bool
    ) -> None:
        self.run, self.module, self.is_global_zero = run, module, is_global_zero
        self.path = folder / "gradients.jsonl"
        self.rows: list[dict[str, float]] = []
        self.device = torch.device(run.device_type)
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        # Rates are totals of all devices.
        self.peak_flops = peak_flops(self.device, dtype) * run.hardware.world_size
        self._grad_norms = GradientNorms(run.model)
        self._recorded_progress = -1.0

    def train_flops(self, batch: Batch) -> float:
        """Training FLOPs of a batch: each forward pass, and twice that for its backward pass.

        Counts matrix products of tokens without padding. Attention in packed rows counts as
        attention over the full rows.
        """
        about, names = batch["about"], find_token_tensors(batch, self.run.task.token_tensors)
        rows = [batch[name].shape[1] for name in names] or [1]  # lengths of inputs, of targets
        count = self.run.model_config.forward_flops(
            tokens=about["tokens"] - about["targets"],
            length=rows[0],
            head_tokens=about["predicted"],
            target_tokens=about["targets"],
            target_length=rows[-1],
        )
        return 3.0 * self.run.task.num_forward_passes * count

    def metrics(self) -> dict[str, float]:
        """Peak memory so far, in MB."""
        return {"memory_mb": round(self.peak_memory_bytes() / 1e6, 1)}

    def system_info(self) -> dict[str, str]:
        """Device, peak FLOP/s and versions."""
        name = platform.processor() or platform.machine()
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        world_size = self.run.hardware.world_size
        return {
            "device": f"{self.device.type} ({name}), {torch.get_num_threads()} threads"
            + (f", {world_size} processes" if world_size > 1 else ""),
            "measured peak": f"{self.peak_flops / 1e9:,.0f} GFLOP/s in {self.run.precision}",
            "versions": f"Miniformer {miniformer.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}",
        }

    def peak_memory_bytes(self) -> int:
        """Peak bytes so far: tensors on a GPU, else the resident memory of this process."""
        return peak_memory(self.device)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        progress = module.progress
        if not is_due(progress, self._recorded_progress, _MAX_ROWS):
            return
        self._recorded_progress = progress
        norms = self._grad_norms.compute()
        limit, norm = module.gradient_clip_val, module.gradient_norm
        if limit and norm is not None:  # undo gradient clipping
            scale = max(1.0, float(norm) / limit)
            norms = {name: value * scale for name, value in norms.items()}
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
