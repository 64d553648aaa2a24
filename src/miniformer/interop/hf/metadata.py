"""Conversion of the task, class names, special tokens and tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from miniformer.checkpoint.directory import tokenizer_files
from miniformer.config import TransformerConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.data.tokenizers.training import PAD_TOKEN
from miniformer.interop.hf.configs import Config, Family
from miniformer.interop.hf.files import CheckpointDirectory
from miniformer.interop.hf.load import Checkpoint
from miniformer.utils.atomic import write_json

# Files that transformers can convert to a tokenizer.json.
_SLOW_TOKENIZER_FILES = (
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_SPECIAL_TOKEN_KEYS = tuple(
    f"{name}_token_id"
    for name in (
        *("bos", "eos", "pad", "unk", "cls", "sep", "mask"),
        *("decoder_start", "forced_bos", "forced_eos"),
    )
)
_DECODER_START_ID = 0  # the default of `Seq2SeqTransformer.generate`
_LABEL_KEYS = ("id2label", "label2id", "problem_type")


def collect_hf_metadata(checkpoint: Checkpoint) -> Config:
    """Collects metadata that only an export needs; plain data."""
    labels = {name: checkpoint.hf_config.get(name) for name in _LABEL_KEYS}

    def head_fields(*, per_token: bool) -> Config:
        """Config fields of the family's first classifier of texts or tokens, without its width."""
        heads = (x for x in checkpoint.family.model_classes.values() if x.is_classifier)
        fields = next((dict(head.fields) for head in heads if head.per_token == per_token), {})
        return {name: value for name, value in fields.items() if name != "output_dim"}

    return {
        "model_type": checkpoint.family.model_type,
        "architecture": checkpoint.class_name,
        "config": {
            **read_special_token_ids(checkpoint),
            **{name: value for name, value in labels.items() if value is not None},
        },
        "classifier": head_fields(per_token=False),
        "token_classifier": head_fields(per_token=True),
        "generation_config": checkpoint.directory.read_json("generation_config.json"),
    }


def read_special_token_ids(checkpoint: Checkpoint) -> Config:
    """Special token ids of a `config.json`, with the defaults of its family."""
    defaults = _ids_in_vocab(checkpoint.family.ids, checkpoint.config.vocab_size)
    config = checkpoint.hf_config
    return {**defaults, **{name: config[name] for name in _SPECIAL_TOKEN_KEYS if name in config}}


def _ids_in_vocab(ids: Config, vocab_size: int) -> Config:
    """A family's default ids; null for ids outside the vocabulary."""
    return {k: v if v is not None and v < vocab_size else None for k, v in ids.items()}


def infer_task(checkpoint: Checkpoint) -> Config:
    """Infers the content of `task.json` from the class and config.

    Raises:
        UserError: the labels are invalid.
    """
    config, hf_config = checkpoint.config, checkpoint.hf_config
    if checkpoint.family.seq2seq:
        start = first_token_id(generation_token_id(checkpoint, "decoder_start_token_id"))
        return {"task": "seq2seq", "start_id": start}
    if config.output_dim is None and config.causal:
        return {"task": "language_modeling", "prepend_bos": _adds_bos(checkpoint.directory)}
    if config.output_dim is None:
        return {"task": "embedding", "input_kind": "text"}
    if checkpoint.family.model_classes[checkpoint.class_name].per_token:
        # As transformers does: the first token of a word has its tag, the most probable one.
        return {
            "task": "token_classification",
            "classes": _class_names(hf_config, config.output_dim),
            "word_pooling": "first",
            "check_tags": False,
            "valid_predictions": False,
        }
    problem = hf_config.get("problem_type")
    if problem == "regression" or (problem is None and config.output_dim == 1):
        count, scale = config.output_dim, {"target_mean": 0.0, "target_std": 1.0}
        if count == 1:
            return {"task": "regression", "input_kind": "text", **scale}
        scales = {name: [value] * count for name, value in scale.items()}
        return {"task": "regression", "input_kind": "text", "num_values": count, **scales}
    classes = _class_names(hf_config, config.output_dim)
    if problem == "multi_label_classification":
        return {"task": "multilabel_classification", "input_kind": "text", "classes": classes}
    return {"task": "classification", "input_kind": "text", "classes": classes}


def _class_names(hf_config: Config, width: int) -> list[Any]:
    names = hf_config.get("id2label")
    if not isinstance(names, dict):
        return list(range(width))
    labels = [names.get(str(index)) for index in range(width)]
    if not all(isinstance(name, str) for name in labels) or len(set(labels)) != width:
        raise UserError(f"id2label must have {width} different labels by index, not {names!r}")
    return labels


def copy_tokenizer(directory: CheckpointDirectory, out: Path, vocab_size: int) -> str | None:
    """Copies or converts a tokenizer; returns a note if that fails or needs attention.

    Raises:
        UserError: the tokenizer is invalid, or has more ids than the model.
    """
    _copy_files(directory, out)
    note = None
    if not (out / "tokenizer.json").exists():
        note = _convert_tokenizer(directory, out)
        if not (out / "tokenizer.json").exists():
            return note
    tokenizer = Tokenizer.from_path(out / "tokenizer.json")
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{directory.path}/tokenizer.json: has {tokenizer.vocab_size} ids, more than the "
            f"model's {vocab_size}; they belong to different models"
        )
    return note or tokenizer.warning


def _copy_files(directory: CheckpointDirectory, out: Path) -> None:
    """Copies the tokenizer files of transformers."""
    for name in tokenizer_files(directory.path):
        data = directory.read_bytes(name)
        assert data is not None, name
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)


def _convert_tokenizer(directory: CheckpointDirectory, out: Path) -> str:
    """Converts older tokenizer files to a `tokenizer.json` with transformers; returns a note."""
    missing = "there is no tokenizer.json, so the model takes token ids only"
    files = [name for name in _SLOW_TOKENIZER_FILES if directory.resolve_file(name) is not None]
    if not files:
        return missing
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return f"{missing}; transformers, if it is installed, may convert {files[0]}"
    try:
        converted = AutoTokenizer.from_pretrained(
            directory.path, local_files_only=True, trust_remote_code=False
        )
        if getattr(converted, "backend_tokenizer", None) is None:
            return f"{missing}: transformers has no fast tokenizer for it"
        converted.save_pretrained(out)
    except Exception as error:  # transformers raises errors of any type
        return f"{missing}: transformers cannot convert it: {str(error).splitlines()[0][:200]}"
    return f"tokenizer.json was converted by transformers from {files[0]}"


def _adds_bos(directory: CheckpointDirectory) -> bool:
    """True if the tokenizer prepends a token to texts."""
    text = directory.read_text("tokenizer.json")
    if text is None:
        return False
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        path = directory.path / "tokenizer.json"
        raise UserError(f"{path}: not a tokenizer.json: {error}") from None
    return bool(Tokenizer(backend).sequence_template.prefix)


def generation_token_id(checkpoint: Checkpoint, name: str) -> Any:
    """A token id from `generation_config.json`, or else from `config.json`."""
    options = checkpoint.directory.read_json("generation_config.json")
    if options is None:  # transformers derives one from the config and its class defaults
        return read_special_token_ids(checkpoint).get(name)
    return options.get(name, checkpoint.hf_config.get(name))


def first_token_id(value: Any) -> Any:
    """Checks a token id; returns the first of a list."""
    value = value[0] if isinstance(value, list) and value else value
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise UserError(f"a token id must be a non-negative integer, not {value!r}")
    return value


# ---- export ----


def make_special_token_ids(
    family: Family,
    hf_metadata: Config,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    decoder_start_id: Any,
) -> Config:
    """All special token ids of a family's `config.json`; null for missing tokens.

    A key must not be omitted: transformers would use the default id of the family.

    Args:
        family: the family.
        hf_metadata: metadata of an imported model; empty for other models.
        tokenizer: the tokenizer; None: the model takes ids only.
        vocab_size: vocabulary size of the model.
        decoder_start_id: the decoder's start token, if the task sets one.

    Raises:
        UserError: the family's pad token differs from the tokenizer's.
    """
    ids: Config = dict.fromkeys(family.ids)
    if hf_metadata:
        same = hf_metadata.get("model_type") == family.model_type
        ids |= _ids_in_vocab(family.ids, vocab_size) if same else {}
        ids |= {
            name: value
            for name, value in hf_metadata.get("config", {}).items()
            if name in _SPECIAL_TOKEN_KEYS
        }
    elif tokenizer is not None:
        pad, eos = tokenizer.backend.token_to_id(PAD_TOKEN), tokenizer.eos_id
        own_ids = {
            **dict.fromkeys(("bos_token_id", "cls_token_id"), tokenizer.bos_id),
            **dict.fromkeys(("eos_token_id", "sep_token_id"), eos),
            "pad_token_id": eos if pad is None else pad,
            "decoder_start_token_id": eos if decoder_start_id is None else decoder_start_id,
        }
        ids |= {name: value for name, value in own_ids.items() if name in ids}
        fixed = family.fixed.get("pad_token_id", ids["pad_token_id"])
        if ids["pad_token_id"] != fixed:
            raise UserError(
                f"{family.model_type} pads with token {fixed}, whose positions it does not count, "
                f"but the tokenizer pads with {ids['pad_token_id']}; train with another position"
            )
    elif family.seq2seq:
        ids["decoder_start_token_id"] = _DECODER_START_ID
    return ids | {name: value for name, value in family.fixed.items() if name in ids}


def label_config(task: Config, width: int | None, hf_metadata: Config) -> Config:
    """Keys of a `config.json` that name the classes or outputs, and the kind of the problem."""
    if width is None:
        return {}
    classes = task.get("classes") or task.get("value_names")
    names = [str(name) for name in classes or [f"LABEL_{index}" for index in range(width)]]
    problem_types = {"multilabel_classification": "multi_label_classification"}
    name = problem_types.get(str(task.get("task")), "single_label_classification")
    is_regression = task.get("task") == "regression" or (width == 1 and classes is None)
    problem = {"problem_type": "regression" if is_regression else name}
    if task.get("task") == "token_classification":
        problem = {}  # transformers has no types of it
    if classes is None:
        labels = {name: hf_metadata.get("config", {}).get(name) for name in _LABEL_KEYS}
        if isinstance(labels["id2label"], dict) and len(labels["id2label"]) == width:
            return problem | {name: value for name, value in labels.items() if value is not None}
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        **problem,
    }


def write_tokenizer(
    tokenizer: Tokenizer | None,
    source_directory: Path | None,
    out: Path,
    config: TransformerConfig,
    task: str,
) -> None:
    """Writes a tokenizer that gives the same ids as the task.

    Args:
        tokenizer: the tokenizer.
        source_directory: a model directory whose tokenizer files are copied; None: none.
        out: target directory.
        config: config of the model.
        task: name of the task, which determines the template.
    """
    if source_directory is not None:
        _copy_files(CheckpointDirectory(source_directory), out)
        return
    if tokenizer is None:
        return
    content = json.loads(tokenizer.backend.to_str())
    if task == "token_classification" and _is_byte_level(content):
        # For `is_split_into_words`, which encodes each word alone: as after a space.
        content["pre_tokenizer"]["add_prefix_space"] = True
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    if not backend.num_special_tokens_to_add(False):
        token, number = tokenizer.eos_token, tokenizer.eos_id
        single, pair = f"{token} $A", f"{token} $A {token}:1 $B:1"
        if task == "seq2seq":
            single, pair = f"$A {token}", f"$A {token} $B:1 {token}:1"
        template = TemplateProcessing(single=single, pair=pair, special_tokens=[(token, number)])
        backend.post_processor = template
    backend.save(str(out / "tokenizer.json"))
    pad = PAD_TOKEN if backend.token_to_id(PAD_TOKEN) is not None else tokenizer.eos_token
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if (config.token_types or 1) > 1 else []
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.eos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "model_input_names": names,
        "model_max_length": config.max_seq_len,
        "padding_side": "left" if config.causal and config.output_dim is None else "right",
    }
    write_json(out / "tokenizer_config.json", tokenizer_config)


def _is_byte_level(content: Config) -> bool:
    """True for a `tokenizer.json` whose words are bytes after a space, as of GPT-2."""
    return (content.get("pre_tokenizer") or {}).get("type") == "ByteLevel"
