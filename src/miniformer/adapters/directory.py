"""Adapter directories: what an adapter adds to a base, in the files of peft.

adapter_config.json  adapter_model.safetensors     the adapter, as peft writes it
miniformer_adapter.json                            hash of the base, config of the model
task.json  generation_config.json                  how to use the model
chat_template.jinja                                of a model of conversations
tokenizer.json                                     if it is not that of the base
README.md                                          the card
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from miniformer.adapters.exchange.peft_config import from_peft_config, to_peft_config
from miniformer.adapters.settings import AdapterSettings
from miniformer.adapters.state import AdapterEntry, state_of
from miniformer.adapters.targets import adaptable_modules
from miniformer.adapters.tensors import PREFIX, adapter_tensors, split_name, targets_of
from miniformer.checkpoint.directory import CHAT_TEMPLATE, atomic_model_directory
from miniformer.config import UserError
from miniformer.utils.atomic import atomic_path, write_json, write_text
from miniformer.utils.jsonl import read_json

CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
INFO_FILE = "miniformer_adapter.json"
_HEAD = "head."


class AdapterFiles(NamedTuple):
    """An adapter read from a directory.

    Args:
        settings: its settings.
        tensors: its tensors by name, without the prefix of peft.
        info: content of `miniformer_adapter.json`; empty: peft wrote the directory.
        directory: the directory.
    """

    settings: AdapterSettings
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    directory: Path


def base_hash(directory: Path) -> str:
    """SHA-256 of the weights of a model directory, without those of the head.

    A run may give a base another head, which its adapter then has.

    Raises:
        UserError: the weights cannot be read.
    """
    path, digest = directory / "model.safetensors", hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                if not name.startswith(_HEAD):
                    tensor = file.get_tensor(name).contiguous()
                    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory needs its weights") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None
    return digest.hexdigest()


def write_adapter(
    out: Path,
    model: Any,
    name: str,
    *,
    base: Path,
    task: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Writes an adapter of a model.

    Args:
        out: the directory to write, which is replaced.
        model: the model.
        name: name of the adapter.
        base: model directory of the base.
        task, generation: content of the files; None: those of the base.
        tokenizer: `tokenizer.json` of the model.

    Raises:
        UserError: the directory cannot be written.
    """
    entry = state_of(model).entries[name]
    tensors = {PREFIX + key: tensor for key, tensor in adapter_tensors(model, name).items()}
    known = list(adaptable_modules(model))
    config = to_peft_config(
        entry.settings, entry.targets, saved_modules(entry), base.resolve().name, known
    )
    transforms = [item for item in model.transforms if item["type"] != "adapter"]
    info = {
        "format_version": "1",
        "architecture": type(model).__name__,
        "base": base.resolve().name,
        "base_sha256": base_hash(base),
        "untie_head": bool(getattr(entry.settings, "untie_head", False)),
        "transforms": transforms,
        "model_config": model.config.to_dict(),
    }
    with atomic_model_directory(out) as folder:
        with atomic_path(folder / TENSOR_FILE) as path:
            save_file(tensors, path, metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, config)
        write_json(folder / INFO_FILE, info)
        if task is not None:
            template = task.get("chat_template")
            settings = {key: value for key, value in task.items() if key != "chat_template"}
            write_json(folder / "task.json", settings)
            if template is not None:
                write_text(folder / CHAT_TEMPLATE, template)
        if generation is not None:
            write_json(folder / "generation_config.json", generation)
        if tokenizer is not None and tokenizer.is_file():
            content, own = tokenizer.read_bytes(), base / "tokenizer.json"
            if not own.is_file() or own.read_bytes() != content:
                (folder / "tokenizer.json").write_bytes(content)
        write_text(folder / "README.md", card(entry.settings, tensors, info))


def saved_modules(entry: AdapterEntry) -> list[str]:
    """Names of the modules whose tensors an adapter saves, without those of BitFit."""
    if entry.settings.method == "bitfit":
        return []
    return list(dict.fromkeys(key.rpartition(".")[0] for key in entry.saved))


def read_adapter(directory: Path) -> AdapterFiles:
    """Reads an adapter directory, of this package or of peft; nothing is unpickled or run.

    Raises:
        UserError: a file is missing, broken, pickled, or has something that is not supported.
    """
    config = read_object(directory / CONFIG_FILE)
    path = directory / TENSOR_FILE
    if not path.is_file():
        if (directory / "adapter_model.bin").exists():
            raise UserError(
                f"{directory}: adapter_model.bin is pickled, and reading it could run code; save "
                "it in peft with safe_serialization=True"
            )
        raise UserError(f"{directory}: {TENSOR_FILE} is missing; is it an adapter directory?")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX) or not tensor.is_floating_point():
            raise UserError(f"{path}: {key!r} ({tensor.dtype}) is no tensor of an adapter of peft")
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    info_path = directory / INFO_FILE
    info = read_object(info_path) if info_path.exists() else {}
    if info and info.get("format_version") != "1":
        raise UserError(
            f"{info_path}: format version {info.get('format_version')!r}; this version reads 1"
        )
    if info and not isinstance(info.get("transforms"), list):
        raise UserError(f"{info_path}: transforms must be a list")
    settings = settings_of(config, tensors, directory / CONFIG_FILE)
    if info.get("untie_head"):
        settings = settings.from_dict({**settings.to_options(), "untie_head": True})
    return AdapterFiles(settings, tensors, info, directory)


def settings_of(config: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> AdapterSettings:
    """Settings of the adapter in a file, from its config and its tensors."""
    modules: list[str] = []
    for key in tensors:
        module, parameter = split_name(key)
        if parameter is None:
            modules.append(module.rpartition(".")[0])
    if config.get("peft_type") == "BITFIT":
        given = config.get("modules_to_save") or []
        modules = [str(name) for name in given] if isinstance(given, list) else []
    inputs = [
        module
        for module, parameter in map(split_name, tensors)
        if parameter == "ia3_l" and len(tensors[f"{module}.ia3_l"]) == 1
    ]
    targets = targets_of(tensors)
    if config.get("peft_type") in ("LORA", "IA3") and not tensors:
        raise UserError(f"{path}: the adapter has no tensors")
    return from_peft_config(config, targets, inputs, list(dict.fromkeys(modules)), path)


def read_object(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is {path.parent} an adapter directory?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold an object, not a {type(value).__name__}")
    return value


def card(settings: AdapterSettings, tensors: dict[str, Tensor], info: dict[str, Any]) -> str:
    """Text of the card."""
    size = sum(tensor.numel() for tensor in tensors.values())
    options = json.dumps(settings.to_options())
    return (
        f"# Adapter of {info['base']}\n\n"
        f"Method {settings.method}, {size:,} trained numbers, options `{options}`.\n\n"
        f"Its base is the model directory `{info['base']}`; the weights of the base have the "
        f"SHA-256 `{info['base_sha256']}`.\n\n"
        "```python\nimport miniformer\n\n"
        'pipeline = miniformer.load("BASE", adapter="ADAPTER")\n```\n'
    )
