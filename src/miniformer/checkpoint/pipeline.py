"""Pipeline: a model directory, loaded and ready to use."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from miniformer.checkpoint.companions import MODELS, check_text, kind_of, read_companions
from miniformer.checkpoint.directory import read_remembered, refuse_full, save_directory
from miniformer.config import GenerationConfig, NoEffectWarning, UserError
from miniformer.data.files import Source
from miniformer.data.records import RecordSequence, records_of
from miniformer.data.tokenizer import Tokenizer
from miniformer.generation.generate import Written
from miniformer.generation.processors import Processor
from miniformer.model.hub import local, push
from miniformer.model.pretrained import read_config
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.encoding import Encoding
from miniformer.tasks.input_task import InputTask, batches_of
from miniformer.tasks.scoring import Scored, perplexity, score
from miniformer.tasks.task import Task
from miniformer.tasks.writing import WritingTask


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
    model = MODELS[kind_of(directory, architecture)].from_pretrained(directory)
    pipeline = Pipeline(model, tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.remembered = directory, read_remembered(directory)
    return pipeline


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
    def generate(
        self, prompt: str | list[str], *, processors: Sequence[Processor] = (), **options: Any
    ) -> Any:
        """Continues a prompt, or several of any lengths at once; of seq2seq writes their targets.

        Args:
            prompt: the text or texts to continue; an empty one begins a new document.
            processors: functions that change logits; see `miniformer.generation.processors`.
            **options: fields of `GenerationConfig`, over the model directory's own.

        Returns:
            What comes after the prompt: a string for a string, a list for a list; with
            `num_return_sequences` above 1 a list in place of each string.

        Raises:
            ValueError: an option is unknown or out of its limits, a prompt leaves no room for
                `max_new_tokens` within `max_seq_len`, or the model writes no text.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        task, tokenizer, settings = self._writer(prompts, options)
        found = task.write(self.model, tokenizer, prompts, settings, processors=processors)
        texts: list[Any] = [text for text, _ in found]
        copies = settings.num_return_sequences
        if copies > 1:
            texts = [texts[first : first + copies] for first in range(0, len(texts), copies)]
        return texts[0] if isinstance(prompt, str) else texts

    def write(
        self, prompts: Sequence[str], *, processors: Sequence[Processor] = (), **options: Any
    ) -> list[tuple[str, Written]]:
        """The same with token ids, their log-probabilities and scores; see `generate`.

        Returns:
            A text and a `Written` each: `num_return_sequences` of the first prompt, and so on.
        """
        task, tokenizer, settings = self._writer(prompts, options)
        return task.write(self.model, tokenizer, prompts, settings, processors=processors)

    def stream(
        self, prompt: str, *, processors: Sequence[Processor] = (), **options: Any
    ) -> Iterator[str]:
        """The answer to one prompt in pieces, as they are written; see `generate`.

        A piece holds whole characters. Together they are what `generate` gives.
        """
        task, tokenizer, settings = self._writer([prompt], options)
        return task.stream(self.model, tokenizer, prompt, settings, processors=processors)

    async def astream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        """The same for `async for`: the model runs in a thread, others go on meanwhile."""
        pieces = self.stream(prompt, **options)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

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
                    check_text(text, f"input {number}")
        return self.task.predict(self.model, self._needed_tokenizer(), inputs, settings)

    def score(
        self, texts: Sequence[str], given: Sequence[str] | None = None, *, stride: int | None = None
    ) -> list[Scored]:
        """How likely texts are, token by token; of seq2seq, as targets of sources.

        Args:
            texts: what is scored; the end of a text is not.
            given: what comes before each, or its source; None: nothing does.
            stride: for texts longer than the model reads; see `miniformer.tasks.scoring`.

        Raises:
            ValueError: there are not as many as texts, or the model writes none.
        """
        given = [""] * len(texts) if given is None else given
        if len(given) != len(texts):
            raise UserError(f"{len(texts)} texts need as many given, not {len(given)}")
        task, tokenizer, _ = self._writer([*given, *texts], {})
        starts = task.starts(self.model, tokenizer, given)
        return score(self.model, starts, tokenizer.encode_batch(texts), stride=stride)

    def perplexity(
        self,
        data: Source | RecordSequence,
        *,
        stride: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Loss, perplexity, bits per byte and perplexity per word of texts.

        Args:
            data: files as training takes them, or records in memory.
            stride, progress: see `miniformer.tasks.scoring.score`.

        Raises:
            ValueError: it is no causal language model, or a record is wrong.
        """
        task, tokenizer, _ = self._writer([], {})
        if task.name != "language_modeling" or not isinstance(self.model, Transformer):
            raise UserError(
                "perplexity is of causal language models; for other models see score and figures "
                "of a test"
            )
        records = records_of(data, task.schema)
        return perplexity(task, self.model, tokenizer, records, stride=stride, progress=progress)

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

    def _writer(
        self, prompts: Sequence[str], options: dict[str, Any]
    ) -> tuple[WritingTask, Tokenizer, GenerationConfig]:
        """What answers prompts: the task, its tokenizer, and decoding settings."""
        settings = self._settings(options, depth=4)
        for text in prompts:
            check_text(text, "prompt")
        if self.tokenizer is None and not self.task.reads_text():
            raise UserError(f"a model for {self.task.name} of vectors writes no text; use predict")
        if not isinstance(self.task, WritingTask):
            raise UserError(f"a model for {self.task.name} writes no text; use predict")
        tokenizer = self._needed_tokenizer()
        assert tokenizer is not None
        return self.task, tokenizer, settings

    def _needed_tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None: the task reads no text."""
        if self.tokenizer is None and self.task.reads_text():
            raise UserError(
                "the model was imported without a tokenizer.json, so it takes token ids only: "
                "use its `model`, or import it from a directory that has one"
            )
        return self.tokenizer

    def _settings(self, options: dict[str, Any], depth: int = 3) -> GenerationConfig:
        own = dataclasses.asdict(self.generation)
        beams = options.get("num_beams")
        if isinstance(beams, int) and beams > 1:  # a search, whatever is sampled without one
            own |= {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None}
        settings = GenerationConfig.from_dict({**own, **options})
        if settings.temperature == 0:
            for name in ("top_k", "top_p", "seed"):
                if options.get(name) is not None:
                    message = f"{name}={options[name]} has no effect with temperature=0"
                    warnings.warn(message, NoEffectWarning, stacklevel=depth)
        return settings
