"""Pipeline: a model directory, loaded and ready to use."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from miniformer.checkpoint.artifacts import (
    MODEL_CLASSES,
    check_texts,
    get_model_kind,
    read_artifacts,
)
from miniformer.checkpoint.directory import read_hf_metadata, require_empty, save_directory
from miniformer.checkpoint.text_generation import TextGenerationMixin
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.hub import resolve_directory, upload_directory
from miniformer.model.pretrained import read_config
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.base import Task
from miniformer.tasks.common.inputs import predict_batches
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.embedding import EmbeddingTask, embed_batch


def load(directory: str | Path, *, revision: str | None = None) -> Pipeline:
    """Loads a model directory: model, tokenizer and task. Nothing in it is unpickled or run.

    Args:
        directory: a model directory, or a name on the hub such as "user/name".
        revision: of a name on the hub: a branch, tag or commit.

    Raises:
        UserError: a file is missing or broken, or they do not fit each other.
    """
    directory = resolve_directory(directory, revision)
    architecture, config = read_config(directory)
    tokenizer, task, generation = read_artifacts(directory, architecture, config)
    model = MODEL_CLASSES[get_model_kind(directory, architecture)].from_pretrained(directory)
    pipeline = Pipeline(model, tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.hf_metadata = directory, read_hf_metadata(directory)
    return pipeline


class Pipeline(TextGenerationMixin):
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
        self.hf_metadata: dict[str, Any] = {}

    def predict(
        self, inputs: Sequence[Any], *, truncate: bool = False, **options: Any
    ) -> list[Any]:
        """Answers to inputs as they stand in records: texts, pairs of texts, or feature vectors.

        Args:
            inputs: what records have as `input`, or as `source`.
            truncate: cut inputs that are longer than the model reads, as training does.
            **options: fields of `GenerationConfig`, for seq2seq.

        Returns:
            For classification {"label", "score", "scores"} each, for regression a number each, for
            seq2seq a string each.

        Raises:
            InputError: inputs are not what the model was trained on, or longer than it reads; its
                `problems` has the number of each.
        """
        if isinstance(inputs, str):
            raise UserError("predict takes a list of inputs; write [input] for a single one")
        settings = self._generation_config(options)
        check_texts(inputs)
        how = {"truncate": True} if truncate else {}
        return self.task.predict(self.model, self._require_tokenizer(), inputs, settings, **how)

    def embed(self, inputs: Sequence[Any], *, truncate: bool = False) -> Tensor:
        """One vector for each input: [N, d_model], as the model's `pooling` says.

        Args:
            inputs: what records have as `input`: texts, pairs of texts, or feature vectors.
            truncate: cut inputs that are longer than the model reads, as training does.

        Raises:
            ValueError: an input is none, or longer than the model reads, or it is a seq2seq model.
        """
        if isinstance(inputs, str):
            raise UserError("embed takes a list of inputs; write [input] for a single one")
        if not isinstance(self.model, Transformer):
            raise UserError("a seq2seq model has no one vector for a text; use an encoder")
        check_texts(inputs)
        # Inputs are read as the task reads them: standardized, as a series, with shared tokens.
        task = self.task if isinstance(self.task, InputTask) else EmbeddingTask(input_kind="text")
        found = list(
            predict_batches(
                task,
                self.model,
                self._require_tokenizer(),
                inputs,
                truncate=truncate,
                output_fn=embed_batch,
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
        require_empty(directory)
        card = None if self.directory is None else self.directory / "README.md"
        told = card is not None and card.is_file()
        save_directory(
            directory,
            model=self.model,
            tokenizer=self.tokenizer,
            task=self.task.settings(),
            generation=self.generation,
            model_card=card.read_text(encoding="utf-8")
            if card is not None and told
            else "# A model\n",
            hf_metadata=self.hf_metadata,
            source_directory=self.directory,
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
            return upload_directory(Path(folder) / "model", name, private=private, message=message)
