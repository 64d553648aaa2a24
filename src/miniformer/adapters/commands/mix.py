"""Weighted sums of adapters of LoRA: one adapter of the stacked ranks, exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from miniformer.adapters.directory import (
    CONFIG_FILE,
    INFO_FILE,
    TENSOR_FILE,
    AdapterFiles,
    card,
    read_adapter,
    read_object,
)
from miniformer.adapters.exchange.peft_config import to_peft_config
from miniformer.adapters.settings import LoraSettings
from miniformer.adapters.tensors import PREFIX, join_name, split_name
from miniformer.checkpoint.directory import (
    CHAT_TEMPLATE,
    atomic_model_directory,
    require_empty,
)
from miniformer.config import UserError
from miniformer.utils.atomic import write_json, write_text


def mix_adapters(
    directories: Sequence[Path], out: Path, weights: Sequence[float] | None = None
) -> None:
    """Writes an adapter whose change of each matrix is the weighted sum of those of others.

    Args:
        directories: adapters of plain LoRA of one base.
        out: the directory to write.
        weights: a factor for each; None: equal ones with the sum 1.

    Raises:
        UserError: the adapters differ in base, or one is no plain LoRA.
    """
    require_empty(out)
    files = [read_adapter(directory) for directory in directories]
    weights = [1 / len(files)] * len(files) if weights is None else list(weights)
    if len(weights) != len(files) or not all(map(math.isfinite, weights)):
        raise UserError(f"weights must be {len(files)} finite numbers, one for each adapter")
    for item in files:
        _check(item, files[0])
    tensors, ranks = _stack(files, weights)
    first = files[0]
    rank = max(ranks.values())
    # The factors of the products are in B, so that each is alpha / r = 1.
    settings = LoraSettings(
        r=rank,
        alpha=float(rank),
        targets=[*ranks],
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
        alpha_pattern={name: own for name, own in ranks.items() if own != rank},
    )
    config = to_peft_config(settings, [*ranks], [], str(first.info.get("base", "")))
    named = {PREFIX + key: tensor.contiguous() for key, tensor in tensors.items()}
    with atomic_model_directory(out) as folder:
        save_file(named, folder / TENSOR_FILE, metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, config)
        if first.info:
            write_json(folder / INFO_FILE, read_object(first.directory / INFO_FILE))
            write_text(folder / "README.md", card(settings, named, first.info))
        for name in ("task.json", "generation_config.json", "tokenizer.json", CHAT_TEMPLATE):
            if (first.directory / name).is_file():
                (folder / name).write_bytes((first.directory / name).read_bytes())


def _check(item: AdapterFiles, first: AdapterFiles) -> None:
    settings = item.settings
    wholes = [key for key in item.tensors if split_name(key)[1] not in ("lora_A", "lora_B")]
    if not isinstance(settings, LoraSettings) or settings.dora or wholes:
        reason = f"it has {wholes[0]}" if wholes else f"its method is {settings.method}"
        raise UserError(f"{item.directory}: only plain LoRA of matrices can be mixed; {reason}")
    if item.info.get("base_sha256") != first.info.get("base_sha256"):
        raise UserError(f"{item.directory}: its base is another than that of {first.directory}")


def _stack(
    files: Sequence[AdapterFiles], weights: Sequence[float]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors of the sum, and the rank of each matrix."""
    names = dict.fromkeys(split_name(key)[0] for item in files for key in item.tensors)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name in names:
        key_a, key_b = join_name(name, "lora_A"), join_name(name, "lora_B")
        rows, columns = [], []
        for item, weight in zip(files, weights, strict=True):
            if key_a in item.tensors and isinstance(item.settings, LoraSettings):
                rows.append(item.tensors[key_a])
                columns.append(item.tensors[key_b] * (weight * item.settings.scale(name)))
        if len({row.shape[1] for row in rows}) > 1 or len({len(column) for column in columns}) > 1:
            raise UserError(f"{name} has different shapes in the adapters")
        tensors[key_a], tensors[key_b] = torch.cat(rows), torch.cat(columns, 1)
        ranks[name] = len(tensors[key_a])
    return tensors, ranks
