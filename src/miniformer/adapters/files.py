"""Loading of a base with adapters, and writing of the adapter that a run has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from miniformer.adapters.by_input import predict as predict
from miniformer.adapters.directory import AdapterFiles, base_hash, read_adapter, write_adapter
from miniformer.adapters.exchange.hf_names import to_native
from miniformer.adapters.exchange.peft_export import write_peft
from miniformer.adapters.settings import AdapterSettings, make_settings
from miniformer.adapters.state import DEFAULT_NAME, add_adapter, state_of
from miniformer.adapters.tensors import load_tensors
from miniformer.checkpoint.artifacts import MODEL_CLASSES, get_model_kind, read_artifacts, read_task
from miniformer.checkpoint.data_settings import read_data_settings
from miniformer.checkpoint.directory import read_hf_metadata
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.checkpoint.pipeline import load as load_pipeline
from miniformer.config import ConfigError, GenerationConfig, TransformerConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.config_file import read_description
from miniformer.model.head import Head
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transforms import apply_transforms
from miniformer.tasks.base import Task

_IGNORED = ("dropout", "tie_embeddings", "token_dropout")  # of no effect in evaluation
_HEAD_FIELDS = (
    "output_dim", "pooling", "head", "head_activation", "head_bias", "final_softcap",
    "logit_scale", "output_bias", "ordered_outputs",
)  # fmt: skip


def load(directory: Path, adapter: Path) -> Pipeline:
    """Loads a base with an adapter in use; `miniformer.load(DIR, adapter=A)` calls it.

    Args:
        directory: model directory of the base.
        adapter: adapter directory of this package or of peft.

    Raises:
        UserError: a file is missing or broken, or the adapter is of another base.
    """
    files = read_adapter(adapter)
    architecture, base_config, *_ = read_description(directory)
    check_base(files, directory, architecture)
    kind = get_model_kind(directory, architecture)
    model: Any = MODEL_CLASSES[kind].from_pretrained(directory)
    own, transforms = [dict(item) for item in model.transforms], files.info.get("transforms", [])
    if own == transforms[: len(own)]:
        model = apply_transforms(model, transforms[len(own) :])
    task, generation, tokenizer = _artifacts(adapter, directory, architecture, base_config)
    pipeline = Pipeline(model, tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.hf_metadata = directory, read_hf_metadata(directory)
    pipeline.data_settings = read_data_settings(directory)
    add_files(model, DEFAULT_NAME, files, directory)
    return pipeline


def add_files(model: Any, name: str, files: AdapterFiles, base: Path | None = None) -> None:
    """Adds an adapter that was read to a model, and uses it.

    Args:
        model: the model.
        name: name of the adapter in the model.
        files: the adapter.
        base: model directory of the model, for names of a Hugging Face family.

    Raises:
        UserError: the adapter does not fit the model.
    """
    settings, tensors = files.settings, files.tensors
    if not files.info:  # peft wrote it
        settings, tensors = to_native(model, base, settings, tensors, files.directory)
    try:
        head = adapter_head(model, files)
        add_adapter(model, name, settings, keep_base=True, head=head)
        load_tensors(model, name, tensors, files.directory)
    except UserError as error:
        text = str(error).removeprefix(f"{files.directory}: ")
        raise UserError(f"{files.directory}: {text}") from None
    note_transform(model, name, settings)
    model.eval()


def note_transform(model: Any, name: str, settings: AdapterSettings) -> None:
    """Notes an adapter among the transforms of a model, so that a model directory names it."""
    setting = {"type": "adapter", "method": settings.method, "name": name, **settings.to_options()}
    model.transforms = (*model.transforms, setting)


def check_base(files: AdapterFiles, directory: Path, architecture: str) -> None:
    """Checks that an adapter belongs to a base.

    Raises:
        UserError: it belongs to another.
    """
    if not files.info:
        return
    if files.info.get("architecture") != architecture:
        raise UserError(
            f"{files.directory}: an adapter of a {files.info.get('architecture')}, but {directory} "
            f"holds a {architecture}"
        )
    expected = files.info.get("base_sha256")
    if expected != (actual := base_hash(directory)):
        raise UserError(
            f"{files.directory}: its base is {files.info.get('base')!r} with the SHA-256 "
            f"{str(expected)[:12]}..., but the weights of {directory} have {actual[:12]}...; name "
            "the base that it was trained on"
        )


def check(method: str, options: dict[str, Any]) -> None:
    """Checks the options of a method.

    Raises:
        UserError: one is unknown or invalid.
    """
    make_settings(method, options)


def write(directory: Path, base: Path, out: Path) -> str:
    """Writes the adapter of a model directory as an adapter directory.

    Args:
        directory: the model directory, with the adapter as its last transform.
        base: model directory of the base.
        out: the directory to write.

    Returns:
        A line for the user.

    Raises:
        UserError: the model has no adapter, or `base` is not its base.
    """
    pipeline = load_pipeline(directory)
    save(pipeline, out, base=base)
    size = sum(path.stat().st_size for path in out.iterdir())
    return f"adapter: {out} ({size / 1e6:.2f} MB; base: {base})"


def export(directory: Path, out: Path, *, family: str | None = None) -> str:
    """Writes the adapter of a model directory for peft; see `write_peft`."""
    return write_peft(load_pipeline(directory), out, family=family)


def save(pipeline: Pipeline, out: str | Path, *, base: str | Path, name: str | None = None) -> None:
    """Writes an adapter of a pipeline's model as an adapter directory.

    Args:
        pipeline: the model with its task.
        out: the directory to write, which is replaced.
        base: model directory of the base.
        name: name of the adapter; None: the last one.

    Raises:
        UserError: the model has no adapter of the name.
    """
    entries = state_of(pipeline.model).entries
    name = [*entries][-1] if name is None else name
    if name not in entries:
        raise UserError(f"the model has no adapter {name!r}; it has {', '.join(entries)}")
    tokenizer = None if pipeline.directory is None else pipeline.directory / "tokenizer.json"
    write_adapter(
        Path(out),
        pipeline.model,
        name,
        base=Path(base),
        task=pipeline.task.settings(),
        generation=pipeline.generation.to_dict(),
        tokenizer=tokenizer,
    )


def adapter_head(model: Any, files: AdapterFiles) -> tuple[nn.Module, TransformerConfig] | None:
    """Head and config of the model with an adapter, if they are not those of its base.

    Raises:
        UserError: the config differs from that of the base in more than the head.
    """
    values, base = files.info.get("model_config"), model.config
    if values is None:
        return None
    try:
        config = TransformerConfig.from_dict(values, stored=True)
    except ConfigError as error:
        raise UserError(f"{files.directory}: not a model config: {error}") from None
    own, of_base = config.to_dict(), base.to_dict()
    different = [name for name in own if own[name] != of_base[name] and name not in _IGNORED]
    if blocked := [name for name in different if name not in _HEAD_FIELDS]:
        raise UserError(
            f"{files.directory}: the adapter's model has {blocked[0]}={own[blocked[0]]!r}, but its "
            f"base has {of_base[blocked[0]]!r}"
        )
    if not different:
        return None
    tied = config.tie_embeddings if isinstance(model, Seq2SeqTransformer) else None
    _check_head(files, config, tied)
    head = Head(config, tied)
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return head.to(like.device, like.dtype), config


def _check_head(files: AdapterFiles, config: TransformerConfig, tied: bool | None) -> None:
    """Compares the tensors of a head with a config, before memory is taken for its sizes.

    Raises:
        UserError: a tensor is missing, or has another shape.
    """
    with torch.device("meta"):
        expected = Head(config, tied).state_dict()
    for key, value in expected.items():
        tensor = files.tensors.get(f"head.{key}")
        if tensor is None:
            raise UserError(f"{files.directory}: head.{key} is neither in it nor in the base")
        if tensor.shape != value.shape:
            raise UserError(
                f"{files.directory}: head.{key} is {tuple(tensor.shape)}, but its config needs "
                f"{tuple(value.shape)}"
            )


def add_directory(
    pipeline: Pipeline, adapter: str | Path, *, name: str, base: str | Path | None = None
) -> None:
    """Adds a further adapter directory to a pipeline; `use_task` selects it.

    Args:
        pipeline: the base.
        adapter: adapter directory of this base.
        name: name of the adapter in the model.
        base: model directory of the base; None: that of the pipeline.

    Raises:
        UserError: the adapter is of another base, or the name is taken.
    """
    directory = pipeline.directory if base is None else Path(base)
    files = read_adapter(Path(adapter))
    if directory is None:
        raise UserError("adapters.load: the pipeline has no directory; pass that of its base")
    check_base(files, directory, type(pipeline.model).__name__)
    tasks = vars(pipeline).setdefault("adapter_tasks", {})
    if not tasks:
        selection = vars(pipeline.model).get("adapter_state")
        current = None if selection is None else selection.selection
        tasks[current] = (pipeline.task, pipeline.generation, pipeline.tokenizer)
        if current is not None:
            base_artifacts = read_artifacts(directory, *read_description(directory)[:2])
            tasks[None] = (base_artifacts[1], base_artifacts[2], base_artifacts[0])
    add_files(pipeline.model, name, files, directory)
    architecture, config = type(pipeline.model).__name__, pipeline.model.config
    tasks[name] = _artifacts(Path(adapter), directory, architecture, config)
    pipeline.task, pipeline.generation, pipeline.tokenizer = tasks[name]


def _artifacts(
    adapter: Path, directory: Path, architecture: str, config: TransformerConfig
) -> tuple[Task, GenerationConfig, Tokenizer | None]:
    """Task, decoding options and tokenizer of an adapter, or where it has none, of its base."""
    tokenizer, task, generation = read_artifacts(directory, architecture, config)
    if (adapter / "task.json").is_file():
        task = read_task(adapter / "task.json", get_model_kind(directory, architecture))
    if (adapter / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_path(adapter / "tokenizer.json")
    if (adapter / "generation_config.json").is_file():
        generation = GenerationConfig.from_file(adapter / "generation_config.json")
    return task, generation, tokenizer
