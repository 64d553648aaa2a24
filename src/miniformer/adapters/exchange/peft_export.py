"""The destination `peft` of `miniformer export`: an adapter for the base in transformers."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from miniformer.adapters.directory import CONFIG_FILE, TENSOR_FILE, saved_modules
from miniformer.adapters.exchange.hf_names import hf_plan, to_family
from miniformer.adapters.exchange.peft_config import to_peft_config
from miniformer.adapters.settings import AdapterSettings, Ia3Settings, LoraSettings
from miniformer.adapters.state import state_of
from miniformer.adapters.tensors import PREFIX, adapter_tensors, split_name
from miniformer.checkpoint.directory import atomic_model_directory, require_empty
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.utils.atomic import atomic_path, write_json, write_text


def write_peft(
    pipeline: Pipeline, out: Path, *, family: str | None = None, name: str | None = None
) -> str:
    """Writes an adapter of a pipeline as peft reads it for the base in transformers.

    Args:
        pipeline: the model.
        out: the directory to write.
        family: `model_type` of the base; None: that of the import, or the first that fits.
        name: name of the adapter; None: the last one.

    Returns:
        A text for the user.

    Raises:
        UserError: the model has no adapter, peft has no such method, or no family fits.
    """
    require_empty(out)
    model: Any = pipeline.model
    entries = state_of(model).entries
    name = [*entries][-1] if name is None else name
    entry = entries[name]
    if not isinstance(entry.settings, LoraSettings | Ia3Settings):
        raise UserError(
            f"peft has no adapters of the method {entry.settings.method}; lora, dora and ia3 go "
            "there, and `miniformer adapter merge` makes a plain model of others"
        )
    plan = hf_plan(
        model,
        model_type=family or pipeline.hf_metadata.get("model_type"),
        per_token=pipeline.task.settings().get("task") == "token_classification",
    )
    tensors = adapter_tensors(model, name)
    settings: AdapterSettings = entry.settings
    if isinstance(settings, LoraSettings) and settings.init == "pissa":
        settings = _doubled(settings)
    settings, renamed, transposed = to_family(model, plan, settings, tensors)
    wholes = [key for key in renamed if split_name(key)[1] is None]
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in wholes))
    if saved_modules(entry) and not modules:
        raise UserError(f"{plan.class_name} of transformers has no place for the saved modules")
    targets = [
        module
        for module in dict.fromkeys(split_name(key)[0] for key in renamed)
        if module not in wholes
    ]
    config = to_peft_config(settings, targets, modules, "BASE")
    config["fan_in_fan_out"] = transposed
    tokens = getattr(settings, "new_tokens", [])
    if tokens:
        embedding = next(
            k for k in targets if f"{k}.token_adapter.trainable_tokens_delta" in renamed
        )
        config["trainable_token_indices"] = {embedding.rpartition(".")[2]: tokens}
        if f"{embedding}.lora_embedding_A" not in renamed:
            config["target_modules"] = [key for key in targets if key != embedding]
    with atomic_model_directory(out) as folder:
        with atomic_path(folder / TENSOR_FILE) as path:
            prefixed = {PREFIX + key: tensor.contiguous() for key, tensor in renamed.items()}
            save_file(prefixed, path, metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, config)
        write_text(folder / "README.md", _card(plan.class_name, config))
    return (
        f"adapter for {plan.class_name} of transformers: {out}\n"
        "its base: miniformer export BASE OUT --to hf"
    )


def _doubled(settings: LoraSettings) -> LoraSettings:
    """Settings of the tensors of a `pissa` adapter, which have twice the rank."""
    factor = math.sqrt(2) if settings.rslora else 2
    return dataclasses.replace(
        settings,
        init="default",
        r=settings.r * 2,
        alpha=settings.alpha * factor,
        rank_pattern={key: rank * 2 for key, rank in settings.rank_pattern.items()},
        alpha_pattern={key: alpha * factor for key, alpha in settings.alpha_pattern.items()},
    )


def _card(class_name: str, config: dict[str, Any]) -> str:
    return (
        f"# Adapter for {class_name}\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModel\n\n"
        f"# BASE is a directory of {class_name}.\n"
        'model = PeftModel.from_pretrained(base, "ADAPTER")\n```\n\n'
        f"```json\n{json.dumps(config, indent=2)}\n```\n"
    )
