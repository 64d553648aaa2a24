"""Pipeline: a loaded model directory."""

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
from miniformer.checkpoint.text_generation import TextGenerationMixin, truncate_kwargs
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
    """Loads a model directory: model, tokenizer and task. No file is unpickled or executed.

    Args:
        directory: a model directory, or a name on the hub such as "user/name".
        revision: branch, tag or commit of a name on the hub.

    Raises:
        UserError: a file is missing or broken, or files do not fit each other.
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
        tokenizer: its tokenizer; None: the model reads no text, or takes token ids only.
        task: the task it was trained for.
        generation: default decoding options.
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
        # The loaded directory, and its Hugging Face metadata.
        self.directory: Path | None = None
        self.hf_metadata: dict[str, Any] = {}

    def predict(
        self, inputs: Sequence[Any], *, truncate: bool = False, **options: Any
    ) -> list[Any]:
        """Predictions for inputs: texts, pairs of texts, or feature vectors.

        Args:
            inputs: in the format of `input` or `source` of records.
            truncate: truncate inputs longer than `max_seq_len`, as training does.
            **options: fields of `GenerationConfig`, for seq2seq.

        Returns:
            For classification {"label", "score", "scores"} each, for regression a number each, for
            seq2seq a string each.

        Raises:
            InputError: inputs differ in kind from the training data, or are too long; its
                `problems` are by input number.
        """
        if isinstance(inputs, str):
            raise UserError("predict takes a list of inputs; use [input] for a single one")
        settings = self._generation_config(options)
        check_texts(inputs)
        kwargs = truncate_kwargs(truncate)
        return self.task.predict(self.model, self._require_tokenizer(), inputs, settings, **kwargs)

    def embed(self, inputs: Sequence[Any], *, truncate: bool = False) -> Tensor:
        """One vector for each input: [N, d_model], as the model's `pooling` says.

        Args:
            inputs: in the format of `input` of records: texts, pairs of texts, or feature vectors.
            truncate: truncate inputs longer than `max_seq_len`, as training does.

        Raises:
            ValueError: an input is invalid or too long, or the model is seq2seq.
        """
        if isinstance(inputs, str):
            raise UserError("embed takes a list of inputs; use [input] for a single one")
        if not isinstance(self.model, Transformer):
            raise UserError("a seq2seq model has no single vector for a text; use an encoder")
        check_texts(inputs)
        # The task encodes inputs as in training: features standardized, shared tokens marked.
        task = self.task if isinstance(self.task, InputTask) else EmbeddingTask(input_kind="text")
        batches = list(
            predict_batches(
                task,
                self.model,
                self._require_tokenizer(),
                inputs,
                truncate=truncate,
                output_fn=embed_batch,
            )
        )
        return torch.cat(batches) if batches else torch.empty(0, self.model.config.d_model)

    def save(self, directory: str | Path) -> None:
        """Writes a model directory, which `load` reads.

        Args:
            directory: must not exist, or be empty.

        Raises:
            UserError: the directory is not empty.
        """
        directory = Path(directory)
        require_empty(directory)
        card = None if self.directory is None else self.directory / "README.md"
        has_card = card is not None and card.is_file()
        save_directory(
            directory,
            model=self.model,
            tokenizer=self.tokenizer,
            task=self.task.settings(),
            generation=self.generation,
            model_card=card.read_text(encoding="utf-8")
            if card is not None and has_card
            else "# A model\n",
            hf_metadata=self.hf_metadata,
            source_directory=self.directory,
        )

    def push_to_hub(self, name: str, *, private: bool = False, message: str | None = None) -> str:
        """Uploads the whole model directory; `load(name)` downloads it.

        Args:
            name, private, message: see `PretrainedMixin.push_to_hub`.

        Returns:
            The URL of the commit.

        Raises:
            UserError: the hub rejects the upload or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return upload_directory(Path(folder) / "model", name, private=private, message=message)
