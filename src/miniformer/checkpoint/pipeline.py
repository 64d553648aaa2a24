"""Pipeline: a model directory, loaded and ready to use."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from miniformer import registry
from miniformer.checkpoint.directory import (
    REMEMBERED,
    SOURCE_TOKENIZER,
    read_remembered,
    refuse_full,
    save_directory,
)
from miniformer.config import (
    ConfigError,
    GenerationConfig,
    NoEffectWarning,
    TransformerConfig,
    UserError,
)
from miniformer.data.tokenizer import Tokenizer
from miniformer.model.hub import local, push
from miniformer.model.pretrained import read_config
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.encoding import Encoding
from miniformer.tasks.input_task import InputTask, batches_of
from miniformer.tasks.task import Task

MODELS: dict[str, type[Transformer] | type[Seq2SeqTransformer]] = {
    "encoder": Transformer,
    "seq2seq": Seq2SeqTransformer,
}


def load(directory: str | Path, *, revision: str | None = None) -> Pipeline:
    """Loads a model directory: model, tokenizer and task. Nothing in it is unpickled or run.

    Args:
        directory: a model directory, or a name on the hub such as "user/name".
        revision: of a name on the hub: a branch, tag or commit.

    Raises:
        UserError: a file is missing or broken, or they do not fit each other.
    """
    directory = local(directory, revision)
    architecture, config = read_config(directory)
    tokenizer, task, generation = read_companions(directory, architecture, config)
    model = MODELS[_kind(directory, architecture)].from_pretrained(directory)
    pipeline = Pipeline(model, tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.remembered = directory, read_remembered(directory)
    return pipeline


def read_companions(
    directory: Path, architecture: str, config: TransformerConfig
) -> tuple[Tokenizer | None, Task, GenerationConfig]:
    """What stands beside the weights in a model directory.

    Raises:
        UserError: a file is missing or broken, or they do not fit each other.
    """
    task = _read_task(directory / "task.json", _kind(directory, architecture))
    tokenizer = None
    # What was imported may have come without a tokenizer: it takes token ids only.
    bare = (directory / REMEMBERED).exists() and not (directory / "tokenizer.json").exists()
    if task.reads_text() and not bare:
        tokenizer = _read_tokenizer(directory / "tokenizer.json", "vocab_size", config)
        if config.source_vocab_size is not None:
            path = directory / SOURCE_TOKENIZER / "tokenizer.json"
            tokenizer.source = _read_tokenizer(path, "source_vocab_size", config)
    return tokenizer, task, GenerationConfig.from_file(directory / "generation_config.json")


def _kind(directory: Path, architecture: str) -> str:
    kinds = {model.__name__: kind for kind, model in MODELS.items()}
    if architecture not in kinds:
        known = " or a ".join(kinds)
        raise UserError(f"{directory}/config.json: holds a {architecture}, not a {known}")
    return kinds[architecture]


class Pipeline:
    """A model with its tokenizer and task.

    Args:
        model: the model.
        tokenizer: its tokenizer; None: it reads no text, or only `model` can be used.
        task: what it was trained for.
        generation: default decoding settings.
    """

    def __init__(
        self,
        model: Transformer | Seq2SeqTransformer,
        tokenizer: Tokenizer | None,
        *,
        task: Task,
        generation: GenerationConfig,
    ) -> None:
        self.model, self.tokenizer, self.task, self.generation = model, tokenizer, task, generation
        # Where it was loaded from, and what other formats' files said that ours have no place for.
        self.directory: Path | None = None
        self.remembered: dict[str, Any] = {}

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str], **options: Any) -> str | list[str]:
        """Continues a prompt, or several of any lengths at once; of seq2seq writes their targets.

        Args:
            prompt: the text or texts to continue; an empty one begins a new document.
            **options: fields of `GenerationConfig`, over the model directory's own.

        Returns:
            What comes after the prompt: a string for a string, a list for a list.

        Raises:
            ValueError: an option is unknown or out of its limits, a prompt leaves no room for
                `max_new_tokens` within `max_seq_len`, or the model writes no text.
        """
        settings = self._settings(options)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        for text in prompts:
            _check_text(text, "prompt")
        if self.tokenizer is None and not self.task.reads_text():
            raise UserError(f"a model for {self.task.name} of vectors writes no text; use predict")
        tokenizer = self._needed_tokenizer()
        assert tokenizer is not None
        texts = self.task.answer(self.model, tokenizer, prompts, settings)
        return texts[0] if isinstance(prompt, str) else texts

    def predict(self, inputs: Sequence[Any], **options: Any) -> list[Any]:
        """Answers to inputs as they stand in records: texts, pairs of texts, or feature vectors.

        Args:
            inputs: what records have as `input`, or as `source`.
            **options: fields of `GenerationConfig`, for seq2seq.

        Returns:
            For classification {"label", "score", "scores"} each, for regression a number each, for
            seq2seq a string each.

        Raises:
            ValueError: an input is not what the model was trained on, or longer than it reads.
        """
        if isinstance(inputs, str):
            raise UserError("predict takes a list of inputs; write [input] for a single one")
        settings = self._settings(options)
        for number, given in enumerate(inputs):
            for text in given if isinstance(given, list | tuple) else [given]:
                if isinstance(text, str):
                    _check_text(text, f"input {number}")
        return self.task.predict(self.model, self._needed_tokenizer(), inputs, settings)

    def embed(self, inputs: Sequence[Any]) -> Tensor:
        """One vector for each input: [N, d_model], as the model's `pooling` says.

        Args:
            inputs: what records have as `input`: texts, pairs of texts, or feature vectors.

        Raises:
            ValueError: an input is none, or longer than the model reads, or it is a seq2seq model.
        """
        if isinstance(inputs, str):
            raise UserError("embed takes a list of inputs; write [input] for a single one")
        if not isinstance(self.model, Transformer):
            raise UserError("a seq2seq model has no one vector for a text; use an encoder")
        kind = self.task.kind() if isinstance(self.task, InputTask) else "text"
        width = self.model.config.input_dim
        found = list(
            batches_of(
                Encoding(input_kind=kind, input_dim=width),
                self.model,
                self._needed_tokenizer(),
                inputs,
            )
        )
        return torch.cat(found) if found else torch.empty(0, self.model.config.d_model)

    def save(self, directory: str | Path) -> None:
        """Writes a model directory, which `load` reads.

        Args:
            directory: it must not exist, or be empty.

        Raises:
            UserError: the directory holds something.
        """
        directory = Path(directory)
        refuse_full(directory)
        card = None if self.directory is None else self.directory / "README.md"
        told = card is not None and card.is_file()
        save_directory(
            directory,
            model=self.model,
            tokenizer=self.tokenizer,
            task=self.task.settings(),
            generation=self.generation,
            card=card.read_text(encoding="utf-8") if card is not None and told else "# A model\n",
            remembered=self.remembered,
            origin=self.directory,
        )

    def push_to_hub(self, name: str, *, private: bool = False, message: str | None = None) -> str:
        """Uploads the whole model directory; `load(name)` brings it back.

        Args:
            name, private, message: see `PretrainedMixin.push_to_hub`.

        Returns:
            The address of the commit.

        Raises:
            UserError: the hub refuses it or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return push(Path(folder) / "model", name, private=private, message=message)

    def _needed_tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None: the task reads no text."""
        if self.tokenizer is None and self.task.reads_text():
            raise UserError(
                "the model was imported without a tokenizer.json, so it takes token ids only: "
                "use its `model`, or import it from a directory that has one"
            )
        return self.tokenizer

    def _settings(self, options: dict[str, Any]) -> GenerationConfig:
        own = dataclasses.asdict(self.generation)
        beams = options.get("num_beams")
        if isinstance(beams, int) and beams > 1:  # a search, whatever is sampled without one
            own |= {"temperature": 0.0, "top_k": None, "top_p": None}
        settings = GenerationConfig.from_dict({**own, **options})
        if settings.temperature == 0:
            for name in ("top_k", "top_p", "seed"):
                if options.get(name) is not None:
                    message = f"{name}={options[name]} has no effect with temperature=0"
                    warnings.warn(message, NoEffectWarning, stacklevel=3)
        return settings


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: character {error.start} is {text[error.start]!a}, half of a surrogate "
            f"pair and no text by itself; is the {name.split()[0]} UTF-8?"
        ) from None


def _read_tokenizer(path: Path, name: str, config: TransformerConfig) -> Tokenizer:
    """The tokenizer at `path`, whose ids `config` gives room as `name`."""
    tokenizer, room = Tokenizer.from_path(path), getattr(config, name)
    if tokenizer.vocab_size > room:
        raise UserError(
            f"{path}: has {tokenizer.vocab_size} ids, more than the model's {name}={room}; they "
            "belong to different models"
        )
    return tokenizer


def _read_task(path: Path, kind: str) -> Task:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        name = settings.pop("task")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory needs its task") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a task description: {error!r}") from None
    if name not in registry.names("task"):
        raise UserError(f"{path}: {registry.unknown('task', name, registry.names('task'))}")
    try:
        task: Task = registry.get("task", name).from_dict(settings)
        task = task.for_model(kind)
        task.reads_text()
    except ConfigError as error:
        raise UserError(f"{path}: not a task description: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return task
