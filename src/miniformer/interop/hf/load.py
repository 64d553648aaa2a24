"""Loads a Hugging Face checkpoint.

config.json -> family, class -> TransformerConfig -> required tensors
-> comparison of names and shapes with the headers of the files -> tensors, one at a time
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniformer.config import TransformerConfig, UserError
from miniformer.interop.hf.configs import Config, Family, read_fields, to_config
from miniformer.interop.hf.families import get_family
from miniformer.interop.hf.files import (
    CheckpointDirectory,
    TensorEntry,
    common_dtype,
    copy_tensor,
    read_tensor,
)
from miniformer.interop.hf.weights import IDENTITY, TensorMapping, make_rules, map_tensors
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

Model = Transformer | Seq2SeqTransformer
_MAX_PARAMS = 2**60  # their size in bytes fits into a 64-bit integer
_MAX_SHOWN = 4  # missing tensors in a message


@dataclasses.dataclass
class Checkpoint:
    """A checked checkpoint, whose tensors are not read yet.

    `entries` are in the order of `plan`; `unused_tensors` are names that are not loaded.
    """

    directory: CheckpointDirectory
    hf_config: Config
    family: Family
    class_name: str  # of transformers
    config: TransformerConfig
    plan: list[TensorMapping]
    entries: list[TensorEntry]
    unused_tensors: list[str]

    def tensors(self) -> Iterator[Tensor]:
        """Yields the tensors of the model, in the order of `plan`."""
        for mapping, entry in zip(self.plan, self.entries, strict=True):
            yield from mapping.layout.split(read_tensor(entry), mapping.shapes)

    def build_model(self, dtype: torch.dtype | None = None) -> Model:
        """Builds the model in eval mode, with the dtype of the files or `dtype`."""
        model: Model = meta_model(self.config, seq2seq=self.family.seq2seq)
        model = model.to(dtype or common_dtype(self.entries)).to_empty(device="cpu")
        weights = model.state_dict()
        with torch.no_grad():
            for mapping, entry in zip(self.plan, self.entries, strict=True):
                if mapping.layout is IDENTITY:
                    copy_tensor(entry, weights[mapping.names[0]])
                    continue
                tensors = mapping.layout.split(read_tensor(entry), mapping.shapes)
                for name, tensor in zip(mapping.names, tensors, strict=True):
                    weights[name].copy_(tensor)
        return model.eval()


def open_checkpoint(
    path: str | Path, *, overrides: Config | None = None, custom_code: str = "refuse"
) -> Checkpoint:
    """Reads and checks a Hugging Face checkpoint without its tensors.

    Args:
        path: the directory.
        overrides: config fields that override the files: `max_seq_len`, `dropout`.
        custom_code: for a config that names custom code: refuse, or ignore.

    Raises:
        UserError: a file is missing, broken or malicious, or the model is not supported.
    """
    directory = CheckpointDirectory(path)
    config_path = directory.path / "config.json"
    hf_config = directory.read_json("config.json")
    if hf_config is None:
        raise UserError(f"{directory.path}: config.json is missing; is it a Hugging Face model?")
    if "architecture" in hf_config and "model_type" not in hf_config:
        raise UserError(
            f"{directory.path}: is a Miniformer model directory already; use it directly"
        )
    if hf_config.get("auto_map") is not None and custom_code == "refuse":
        raise UserError(
            f"{config_path}: auto_map names custom code, which is never executed; if it computes "
            "the same as the family, set custom_code=ignore"
        )
    if hf_config.get("quantization_config") is not None:
        raise UserError(f"{config_path}: quantization_config: quantized weights are not supported")
    with _prefix_errors(config_path):
        family = get_family(hf_config)
        name, fields = read_fields(family, hf_config)
    entries = _canonical_names(family, directory.tensor_entries())
    fields |= _infer_fields_from_weights(family, name, fields, entries)
    fields |= _read_pooling(directory, family.model_classes[name].is_backbone)
    with _prefix_errors(config_path):
        config = to_config({**fields, **(overrides or {})})
        if (num_params := config.num_params(seq2seq=family.seq2seq)) > _MAX_PARAMS:
            raise UserError(f"a model of {num_params:,} parameters is not supported")
    with _prefix_errors(directory.path):
        plan = _plan_tensors(family, name, config, len(entries))
        matched, unused = _match_entries(family, plan, entries)
    return Checkpoint(directory, hf_config, family, name, config, plan, matched, unused)


@contextlib.contextmanager
def _prefix_errors(path: Path) -> Iterator[None]:
    """Prefixes the messages of user errors with a path."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def meta_model(config: TransformerConfig, *, seq2seq: bool) -> Any:
    """A model on the meta device."""
    with torch.device("meta"):
        return Seq2SeqTransformer(config) if seq2seq else Transformer(config)


def _plan_tensors(
    family: Family, name: str, config: TransformerConfig, entries: int
) -> list[TensorMapping]:
    """Maps the tensors that a config requires.

    An untrusted config may have any number of layers. If it has more layers than there are tensors,
    the layers are limited to one more than the tensors: one must be missing in any case.
    """
    layers: dict[str, Any] = {
        field: entries + 1
        for field in ("n_layers", "n_decoder_layers")
        if (getattr(config, field) or 0) > entries
    }
    config = dataclasses.replace(config, **layers)
    model = meta_model(config, seq2seq=family.seq2seq)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    return map_tensors(family.weight_rules(name, config), shapes)


def _canonical_names(family: Family, entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Entries by the names of the rules, with the prefix that files of a backbone lack."""
    renamed = {
        name.replace(".LayerNorm.gamma", ".LayerNorm.weight").replace(
            ".LayerNorm.beta", ".LayerNorm.bias"
        ): entry
        for name, entry in entries.items()
    }
    if any(name.startswith(family.prefix) for name in renamed):
        return renamed
    return {family.prefix + name: entry for name, entry in renamed.items()}


def _infer_fields_from_weights(
    family: Family, name: str, fields: Config, entries: dict[str, TensorEntry]
) -> Config:
    """Infers `tie_embeddings` and `head_bias` from the weights."""
    inferred: Config = {}
    if "head_bias" in family.weight_only_fields:
        bias = entries.get("final_logits_bias")
        inferred["head_bias"] = bias is not None and bool(read_tensor(bias).any())
    if not fields.get("tie_embeddings") or fields.get("output_dim") is not None:
        return inferred
    heads = [
        rule.hf_name.removesuffix(".weight") + ".weight"
        for rule in make_rules(family.model_classes[name].weights)
        if rule.names[0] in ("head", "head.weight")
    ]
    for copy in heads:
        originals = [entries[n] for n in family.tied_weights.get(copy, ()) if n in entries]
        if copy in entries and originals:
            inferred["tie_embeddings"] = _tensors_equal(entries[copy], originals[0])
    return inferred


def _read_pooling(directory: CheckpointDirectory, is_backbone: bool) -> Config:
    """Reads the pooling of a sentence encoder from the file of sentence-transformers."""
    config = directory.read_json("1_Pooling/config.json") if is_backbone else None
    if config is None:
        return {}
    modes = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last", "max_tokens": "max"}
    active = [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    poolings = [modes.get(name.removeprefix("pooling_mode_")) for name in active]
    if len(poolings) != 1 or poolings[0] is None:
        raise UserError(
            f"{directory.path}/1_Pooling/config.json: {' and '.join(active) or 'no pooling'} is "
            f"not supported, only one of {', '.join(modes)}"
        )
    return {"pooling": poolings[0]}


def _tensors_equal(first: TensorEntry, second: TensorEntry) -> bool:
    return first.shape == second.shape and torch.equal(read_tensor(first), read_tensor(second))


def _match_entries(
    family: Family, plan: list[TensorMapping], entries: dict[str, TensorEntry]
) -> tuple[list[TensorEntry], list[str]]:
    """The entry of each planned tensor, and the names of unused tensors.

    Raises:
        UserError: a tensor is missing, has another shape, or is unknown.
    """
    missing = [mapping.hf_name for mapping in plan if mapping.hf_name not in entries]
    if missing:
        shown = ", ".join(map(repr, missing[:_MAX_SHOWN]))
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        raise UserError(f"the files have no tensor {shown}{more}, which the config requires")
    remaining = dict(entries)
    matched = {}
    for mapping in plan:
        entry = remaining.pop(mapping.hf_name)
        if entry.shape != mapping.shape():
            raise UserError(
                f"tensor {entry.name!r} has shape {list(entry.shape)}, but the config requires "
                f"{list(mapping.shape())}"
            )
        matched[mapping.hf_name] = entry
    unused = []
    for name, entry in remaining.items():
        originals = family.tied_weights.get(name, ())
        original = next((matched[n] for n in originals if n in matched), None)
        if original is not None and _tensors_equal(entry, original):
            continue
        if (original is None and name == "final_logits_bias") or name.endswith(
            family.ignored_suffixes
        ):
            continue
        if family.ignored_prefixes and name.startswith(family.ignored_prefixes):
            unused.append(entry.name)
            continue
        problem = "differs from the tensor it should be a copy of" if original else "is unknown"
        raise UserError(f"tensor {entry.name!r} {problem}")
    return list(matched.values()), unused
