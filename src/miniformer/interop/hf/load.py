"""From a directory of Hugging Face's to a model of ours.

config.json -> family, class -> TransformerConfig -> which tensors there must be
-> names and shapes are compared with the files' headers -> tensors, one by one
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
from miniformer.interop.hf.weights import IDENTITY, TensorMapping, map_tensors
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

Model = Transformer | Seq2SeqTransformer
_MAX_PARAMS = 2**60  # their bytes are still a 64-bit integer
_MAX_SHOWN = 4  # missing tensors that a message names


@dataclasses.dataclass
class Checkpoint:
    """A directory of theirs, understood but for its values.

    `entries` are in the order of `plan`; `left_out` are names whose weights are not read.
    """

    directory: CheckpointDirectory
    hf_config: Config
    family: Family
    class_name: str  # of their class
    config: TransformerConfig
    plan: list[TensorMapping]
    entries: list[TensorEntry]
    unused_tensors: list[str]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Our names and values, one by one, in the order of the model's own."""
        for piece, entry in zip(self.plan, self.entries, strict=True):
            yield from zip(piece.names, self._split_tensor(piece, entry), strict=True)

    def _split_tensor(self, piece: TensorMapping, entry: TensorEntry) -> list[Tensor]:
        return piece.layout.split(read_tensor(entry), piece.shapes)

    def build_model(self, dtype: torch.dtype | None = None) -> Model:
        """The model, in eval mode, in the type of the files or in `dtype`."""
        model: Model = meta_model(self.config, seq2seq=self.family.seq2seq)
        model = model.to(dtype or common_dtype(self.entries)).to_empty(device="cpu")
        weights = model.state_dict()
        with torch.no_grad():
            for piece, entry in zip(self.plan, self.entries, strict=True):
                if piece.layout is IDENTITY:
                    copy_tensor(entry, weights[piece.names[0]])
                    continue
                for name, tensor in zip(piece.names, self._split_tensor(piece, entry), strict=True):
                    weights[name].copy_(tensor)
        return model.eval()


def open_checkpoint(
    path: str | Path, *, overrides: Config | None = None, custom_code: str = "refuse"
) -> Checkpoint:
    """Reads everything but the values of a directory of Hugging Face's.

    Args:
        path: the directory.
        settings: fields of ours over what the files say: `max_seq_len`, `dropout`.
        custom_code: what to do where a config names code of its own: refuse, or ignore.

    Raises:
        UserError: a file is missing, broken or hostile, or the model has parts that we have not.
    """
    directory = CheckpointDirectory(path)
    where = directory.path / "config.json"
    theirs = directory.read_json("config.json")
    if theirs is None:
        raise UserError(f"{directory.path}: config.json is missing; is it a Hugging Face model?")
    if "architecture" in theirs and "model_type" not in theirs:
        raise UserError(f"{directory.path}: is a model directory of ours already; use it as it is")
    if theirs.get("auto_map") is not None and custom_code == "refuse":
        raise UserError(
            f"{where}: auto_map names code of the model's own, which is never run here; "
            "where it computes what the family does, say custom_code=ignore"
        )
    if theirs.get("quantization_config") is not None:
        raise UserError(f"{where}: quantization_config: quantized weights are not read")
    with _prefix_errors(where):
        family = get_family(theirs)
        name, fields = read_fields(family, theirs)
    entries = _canonical_names(family, directory.tensor_entries())
    fields |= _infer_fields_from_weights(family, name, fields, entries)
    fields |= _read_pooling(directory, family.model_classes[name].is_backbone)
    with _prefix_errors(where):
        config = to_config({**fields, **(overrides or {})})
        _check_num_params(config, family)
    with _prefix_errors(directory.path):
        plan = _plan_tensors(family, name, config, len(entries))
        chosen, left_out = _match_entries(family, plan, entries)
    return Checkpoint(directory, theirs, family, name, config, plan, chosen, left_out)


@contextlib.contextmanager
def _prefix_errors(path: Path) -> Iterator[None]:
    """Puts a path before the messages of mistakes."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def meta_model(config: TransformerConfig, *, seq2seq: bool) -> Any:
    """A model without values."""
    with torch.device("meta"):
        return Seq2SeqTransformer(config) if seq2seq else Transformer(config)


def _plan_tensors(
    family: Family, name: str, config: TransformerConfig, entries: int
) -> list[TensorMapping]:
    """The tensors that a config wants.

    A config may claim any number of layers: where it has more than the files have tensors, those of
    so many layers that one must be missing.
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
    """Entries by the names that rules have: with the prefix, which a bare backbone's lack."""
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
    """Fields that only the weights tell: whether a tied head is one, and whether a bias is used."""
    found: Config = {}
    if "head_bias" in family.weight_only_fields:
        bias = entries.get("final_logits_bias")
        found["head_bias"] = bias is not None and bool(read_tensor(bias).any())
    if not fields.get("tie_embeddings") or fields.get("output_dim") is not None:
        return found
    heads = [
        rule.hf_name.removesuffix(".weight") + ".weight"
        for rule in family.model_classes[name].rules
        if rule.names[0] in ("head", "head.weight")
    ]
    for copy in heads:
        originals = [entries[each] for each in family.tied_weights.get(copy, ()) if each in entries]
        if copy in entries and originals:
            found["tie_embeddings"] = _tensors_equal(entries[copy], originals[0])
    return found


def _read_pooling(directory: CheckpointDirectory, bare: bool) -> Config:
    """How a sentence encoder makes one vector, as sentence-transformers has it in a file."""
    said = directory.read_json("1_Pooling/config.json") if bare else None
    if said is None:
        return {}
    ways = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last", "max_tokens": "max"}
    chosen = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
    found = [ways.get(name.removeprefix("pooling_mode_")) for name in chosen]
    if len(found) != 1 or found[0] is None:
        raise UserError(
            f"{directory.path}/1_Pooling/config.json: {' and '.join(chosen) or 'no pooling'} is "
            f"not supported, only one of {', '.join(ways)}"
        )
    return {"pooling": found[0]}


def _tensors_equal(first: TensorEntry, second: TensorEntry) -> bool:
    return first.shape == second.shape and torch.equal(read_tensor(first), read_tensor(second))


def _check_num_params(config: TransformerConfig, family: Family) -> None:
    """Refuses sizes that torch cannot even count."""
    wanted = config.num_params(seq2seq=family.seq2seq)
    if wanted > _MAX_PARAMS:
        raise UserError(f"makes a model of {wanted:,} weights, more than any file holds")


def _match_entries(
    family: Family, plan: list[TensorMapping], entries: dict[str, TensorEntry]
) -> tuple[list[TensorEntry], list[str]]:
    """The entry of each piece, and the names of what we have no use for.

    Raises:
        UserError: a tensor is missing, of another shape, or of no use that we know.
    """
    missing = [piece.hf_name for piece in plan if piece.hf_name not in entries]
    if missing:
        shown = ", ".join(map(repr, missing[:_MAX_SHOWN]))
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        raise UserError(f"the files have no tensor {shown}{more}, which the config asks for")
    left = dict(entries)
    chosen = []
    for piece in plan:
        entry = left.pop(piece.hf_name)
        if entry.shape != piece.shape():
            raise UserError(
                f"tensor {entry.name!r} is {list(entry.shape)}, but the config makes it "
                f"{list(piece.shape())}"
            )
        chosen.append(entry)
    by_name = {piece.hf_name: entry for piece, entry in zip(plan, chosen, strict=True)}
    out = []
    for name, entry in left.items():
        originals = family.tied_weights.get(name, ())
        original = next((by_name[each] for each in originals if each in by_name), None)
        if original is not None and _tensors_equal(entry, original):
            continue
        if (original is None and name == "final_logits_bias") or name.endswith(
            family.ignored_suffixes
        ):
            continue
        if family.ignored_prefixes and name.startswith(family.ignored_prefixes):
            out.append(entry.name)
            continue
        why = (
            "differs from what it should be a copy of" if original else "is of no part that we know"
        )
        raise UserError(f"tensor {entry.name!r} {why}")
    return chosen, out
