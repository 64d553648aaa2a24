"""What stands beside the weights: the task, names of classes, special tokens, tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from miniformer.checkpoint.directory import tokenizer_files
from miniformer.config import TransformerConfig, UserError
from miniformer.data.tokenizer import Tokenizer
from miniformer.data.tokenizer_training import PAD
from miniformer.interop.hf.configs import Config, Family
from miniformer.interop.hf.files import Directory
from miniformer.interop.hf.reading import Checkpoint

# What transformers makes one of.
_OLDER = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SPECIAL = tuple(
    f"{name}_token_id"
    for name in (
        *("bos", "eos", "pad", "unk", "cls", "sep", "mask"),
        *("decoder_start", "forced_bos", "forced_eos"),
    )
)
_START = 0  # as `Seq2SeqTransformer.generate` begins
_LABELS = ("id2label", "label2id", "problem_type")


def remembered(checkpoint: Checkpoint) -> Config:
    """What their files say that ours have no place for, to be written again: plain data only."""
    labels = {name: checkpoint.theirs.get(name) for name in _LABELS}
    heads = [kind.fields for kind in checkpoint.family.kinds.values() if kind.classifies]
    classifier = dict(heads[0]) if heads else {}
    classifier.pop("output_dim", None)
    return {
        "model_type": checkpoint.family.model_type,
        "architecture": checkpoint.name,
        "config": {
            **ids_of(checkpoint),
            **{name: value for name, value in labels.items() if value is not None},
        },
        "classifier": classifier,  # our fields of the family's head for classes
        "generation_config": checkpoint.directory.json("generation_config.json"),
    }


def ids_of(checkpoint: Checkpoint) -> Config:
    """Special tokens as a `config.json` has them, those that it leaves out included."""
    usual = _within(checkpoint.family.ids, checkpoint.config.vocab_size)
    given = checkpoint.theirs
    return {**usual, **{name: given[name] for name in _SPECIAL if name in given}}


def _within(ids: Config, vocab_size: int) -> Config:
    """A family's usual ids: null where a vocabulary has no such id."""
    return {k: v if v is not None and v < vocab_size else None for k, v in ids.items()}


def task_of(checkpoint: Checkpoint) -> Config:
    """Settings of the task that a model is for, as `task.json` has them.

    Raises:
        UserError: its labels are none.
    """
    config, theirs, kind = checkpoint.config, checkpoint.theirs, _kind(checkpoint)
    if kind == "seq2seq":
        start = first(said(checkpoint, "decoder_start_token_id"))
        return {"task": "seq2seq", "start_id": start}
    if kind == "language_modeling":
        return {"task": kind, "prompt_begins_document": _has_template(checkpoint.directory)}
    if kind == "encoding":
        return {"task": kind, "input_kind": "text"}
    problem = theirs.get("problem_type")
    if problem == "regression" or (problem is None and config.output_dim == 1):
        if config.output_dim != 1:
            raise UserError(f"a regression of {config.output_dim} values is not supported, only 1")
        return {"task": "regression", "input_kind": "text", "mean": 0.0, "spread": 1.0}
    if problem == "multi_label_classification":
        raise UserError(f"problem_type={problem!r} is not supported: one label for each text")
    assert config.output_dim is not None
    return {"task": "classification", "input_kind": "text", "classes": _classes(theirs, config)}


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.family.seq2seq:
        return "seq2seq"
    if checkpoint.config.output_dim is not None:
        return "classification"
    return "language_modeling" if checkpoint.config.causal else "encoding"


def _classes(theirs: Config, config: TransformerConfig) -> list[Any]:
    width = config.output_dim or 0
    names = theirs.get("id2label")
    if not isinstance(names, dict):
        return list(range(width))
    found = [names.get(str(index)) for index in range(width)]
    if not all(isinstance(name, str) for name in found) or len(set(found)) != width:
        raise UserError(f"id2label must name {width} labels by number, all different: {names!r}")
    return found


def copy_tokenizer(directory: Directory, out: Path, vocab_size: int) -> str | None:
    """Copies a tokenizer's files as they are; returns a note for the user where there is none.

    Raises:
        UserError: it is broken, or has more ids than the model.
    """
    _copy_files(directory, out)
    told = None
    if not (out / "tokenizer.json").exists():
        told = _converted(directory, out)
        if not (out / "tokenizer.json").exists():
            return told
    tokenizer = Tokenizer.from_path(out / "tokenizer.json")
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{directory.path}/tokenizer.json: has {tokenizer.vocab_size} ids, more than the "
            f"model's {vocab_size}; they belong to different models"
        )
    return told or tokenizer.note


def _copy_files(directory: Directory, out: Path) -> None:
    """Copies every file that transformers reads a tokenizer from, byte by byte."""
    for name in tokenizer_files(directory.path):
        data = directory.data(name)
        assert data is not None, name
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)


def _converted(directory: Directory, out: Path) -> str:
    """Has transformers write a `tokenizer.json`, from older files that only it reads."""
    none = "there is no tokenizer.json, so the model takes token ids only"
    older = [name for name in _OLDER if directory.file(name) is not None]
    if not older:
        return none
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return f"{none}; transformers, if it is installed, may convert {older[0]}"
    try:
        made = AutoTokenizer.from_pretrained(
            directory.path, local_files_only=True, trust_remote_code=False
        )
        if getattr(made, "backend_tokenizer", None) is None:
            return f"{none}: transformers has no fast form of it"
        made.save_pretrained(out)
    except Exception as error:  # whatever their readers raise
        return f"{none}: transformers cannot convert it: {str(error).splitlines()[0][:200]}"
    return f"tokenizer.json was written by transformers, from {older[0]}"


def _has_template(directory: Directory) -> bool:
    """Whether their tokenizer puts a token before a text."""
    text = directory.text("tokenizer.json")
    if text is None:
        return False
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        where = directory.path / "tokenizer.json"
        raise UserError(f"{where}: not a tokenizer.json: {error}") from None
    return bool(Tokenizer(backend).of_sequences.before)


def said(checkpoint: Checkpoint, name: str) -> Any:
    """A token id of decoding: that of `generation_config.json`, else that of `config.json`."""
    given = checkpoint.directory.json("generation_config.json")
    if given is None:  # transformers makes one of the config, with what its class has by default
        return ids_of(checkpoint).get(name)
    return given.get(name, checkpoint.theirs.get(name))


def first(value: Any) -> Any:
    """A token id; of several the first."""
    value = value[0] if isinstance(value, list) and value else value
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise UserError(f"a token id must be an integer from 0 on, not {value!r}")
    return value


# ---- out ----


def special_ids(
    family: Family, kept: Config, tokenizer: Tokenizer | None, *, vocab_size: int, start: Any
) -> Config:
    """Every special token of a family's `config.json`, null where there is none.

    All are said: what a file leaves out is an id of the family's own vocabulary to transformers.

    Args:
        family: the family.
        kept: what was remembered of an import; empty: the model was made here.
        tokenizer: ours; None: the model takes ids only.
        vocab_size: the model's.
        start: the id that a decoder begins with, if the task says one.

    Raises:
        UserError: the family's padding is another token than the tokenizer's.
    """
    ids: Config = dict.fromkeys(family.ids)
    if kept:
        same = kept.get("model_type") == family.model_type
        ids |= _within(family.ids, vocab_size) if same else {}
        ids |= {name: value for name, value in kept.get("config", {}).items() if name in _SPECIAL}
    elif tokenizer is not None:
        pad, end = tokenizer.backend.token_to_id(PAD), tokenizer.boundary_id
        ours = {
            **dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.begin_id),
            **dict.fromkeys(("eos_token_id", "sep_token_id"), end),
            "pad_token_id": end if pad is None else pad,
            "decoder_start_token_id": end if start is None else start,
        }
        ids |= {name: value for name, value in ours.items() if name in ids}
        fixed = family.fixed.get("pad_token_id", ids["pad_token_id"])
        if ids["pad_token_id"] != fixed:
            raise UserError(
                f"{family.model_type} pads with token {fixed}, and counts positions without it, "
                f"but the tokenizer pads with {ids['pad_token_id']}; train with another position"
            )
    elif family.seq2seq:
        ids["decoder_start_token_id"] = _START
    return ids | {name: value for name, value in family.fixed.items() if name in ids}


def labels(classes: list[Any] | None, width: int | None, kept: Config) -> Config:
    """Names of classes, as a `config.json` has them."""
    if width is None:
        return {}
    if classes is None and width == 1:
        names, problem = ["LABEL_0"], {"problem_type": "regression"}
    else:
        names = [str(name) for name in classes or [f"LABEL_{index}" for index in range(width)]]
        problem = {"problem_type": "single_label_classification"}
    if classes is None:
        given = {name: kept.get("config", {}).get(name) for name in _LABELS}
        if isinstance(given["id2label"], dict) and len(given["id2label"]) == width:
            return problem | {name: value for name, value in given.items() if value is not None}
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        **problem,
    }


def write_tokenizer(
    tokenizer: Tokenizer | None,
    source: Path | None,
    out: Path,
    config: TransformerConfig,
    task: str,
) -> None:
    """Writes a tokenizer that gives the ids our tasks give.

    Args:
        tokenizer: ours.
        source: the model directory, if its tokenizer came from elsewhere and goes as it came.
        out: where it goes.
        config: the model's.
        task: the task's name: what is put around a text depends on it.
    """
    if source is not None:
        _copy_files(Directory(source), out)
        return
    if tokenizer is None:
        return
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    if not backend.num_special_tokens_to_add(False):
        token, number = tokenizer.boundary, tokenizer.boundary_id
        single, pair = f"{token} $A", f"{token} $A {token}:1 $B:1"
        if task == "seq2seq":
            single, pair = f"$A {token}", f"$A {token} $B:1 {token}:1"
        template = TemplateProcessing(single=single, pair=pair, special_tokens=[(token, number)])
        backend.post_processor = template
    backend.save(str(out / "tokenizer.json"))
    pad = PAD if backend.token_to_id(PAD) is not None else tokenizer.boundary
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if (config.token_types or 1) > 1 else []
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.boundary,
        "eos_token": tokenizer.boundary,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "model_input_names": names,
        "model_max_length": config.max_seq_len,
        "padding_side": "left" if config.causal and config.output_dim is None else "right",
    }
    text = json.dumps(described, indent=2) + "\n"
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
