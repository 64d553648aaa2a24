"""Text generation and scoring of a `Pipeline`."""

from __future__ import annotations

import asyncio
import dataclasses
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, overload

from miniformer.checkpoint.artifacts import check_text
from miniformer.config import ConfigError, GenerationConfig, NoEffectWarning, UserError
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.records import RecordSequence, as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationOutput
from miniformer.generation.logits_processors import Processor
from miniformer.generation.speculative import Speculation
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.base import Task
from miniformer.tasks.common.scoring import ScoredText, perplexity, score
from miniformer.tasks.common.text_generation import TextGenerationTask


class TextGenerationMixin:
    """Text generation and scoring; `Pipeline` inherits it."""

    model: Transformer | Seq2SeqTransformer
    tokenizer: Tokenizer | None
    task: Task
    generation: GenerationConfig

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[str]: ...
    def generate(
        self,
        prompt: str | list[str],
        *,
        processors: Sequence[Processor] = (),
        draft: Any = None,
        truncate: bool = False,
        **options: Any,
    ) -> Any:
        """Generates continuations of one or more prompts, or seq2seq targets.

        Args:
            prompt: one or more prompts of any lengths; an empty prompt starts a new document.
            processors: functions that change logits; see `miniformer.generation.logits_processors`.
            draft: proposes tokens for speculative decoding: a smaller model's `Pipeline`, "lookup"
                for prompt lookup, or a `Speculation`.
            truncate: truncate prompts that are too long: a source at the end, as training does; a
                prompt of a causal model at the beginning, so that `max_new_tokens` fit.
            **options: fields of `GenerationConfig` that override those of the model directory.

        Returns:
            The text after the prompt: a string for a string, a list for a list; with
            `num_return_sequences` above 1 a list in place of each string.

        Raises:
            ValueError: an option is unknown or out of range, a prompt leaves no room for
                `max_new_tokens` within `max_seq_len`, or the model generates no text.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        kwargs: dict[str, Any] = {"processors": processors, "speculation": _resolve_draft(draft)}
        task, tokenizer, settings = self._prepare_generation(prompts, options)
        outputs = task.generate(
            self.model, tokenizer, prompts, settings, **truncate_kwargs(truncate), **kwargs
        )
        texts: list[Any] = [text for text, _ in outputs]
        copies = settings.num_return_sequences
        if copies > 1:
            texts = [texts[first : first + copies] for first in range(0, len(texts), copies)]
        return texts[0] if isinstance(prompt, str) else texts

    def generate_outputs(
        self,
        prompts: Sequence[str],
        *,
        processors: Sequence[Processor] = (),
        draft: Any = None,
        truncate: bool = False,
        **options: Any,
    ) -> list[tuple[str, GenerationOutput]]:
        """Generates text with token ids, log-probabilities and scores; see `generate`.

        Returns:
            A text and a `GenerationOutput` each: `num_return_sequences` of the first prompt, and so
            on.
        """
        kwargs: dict[str, Any] = {"processors": processors, "speculation": _resolve_draft(draft)}
        task, tokenizer, settings = self._prepare_generation(prompts, options)
        return task.generate(
            self.model, tokenizer, prompts, settings, **truncate_kwargs(truncate), **kwargs
        )

    def stream(
        self,
        prompt: str,
        *,
        processors: Sequence[Processor] = (),
        draft: Any = None,
        truncate: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """Streams the answer to one prompt in chunks of complete characters; see `generate`."""
        kwargs: dict[str, Any] = {"processors": processors, "speculation": _resolve_draft(draft)}
        task, tokenizer, settings = self._prepare_generation([prompt], options)
        return task.stream(
            self.model, tokenizer, prompt, settings, **truncate_kwargs(truncate), **kwargs
        )

    async def astream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        """Streams for `async for`; the model runs in a thread. See `stream`."""
        chunks = self.stream(prompt, **options)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk

    def score(
        self,
        texts: Sequence[str],
        prompts: Sequence[str] | None = None,
        *,
        stride: int | None = None,
        truncate: bool = False,
    ) -> list[ScoredText]:
        """Log-probabilities of texts, token by token; of seq2seq, as targets of sources.

        Args:
            texts: texts to score, without EOS.
            prompts: prompt or source of each text; None: empty prompts.
            stride: for texts longer than `max_seq_len`; see `miniformer.tasks.common.scoring`.
            truncate: truncate sources that are too long, as training does.

        Raises:
            ValueError: the numbers of texts and prompts differ, or the model generates no text.
        """
        prompts = [""] * len(texts) if prompts is None else prompts
        if len(prompts) != len(texts):
            raise UserError(f"{len(texts)} texts need as many prompts, not {len(prompts)}")
        task, tokenizer, _ = self._prepare_generation([*prompts, *texts], {})
        if truncate and not isinstance(self.model, Seq2SeqTransformer):
            raise UserError("truncate is for sources; texts of any length are scored in windows")
        inputs = task.generation_inputs(self.model, tokenizer, prompts, **truncate_kwargs(truncate))
        return score(self.model, inputs, tokenizer.encode_batch(texts), stride=stride)

    def perplexity(
        self,
        data: DataFiles | RecordSequence,
        *,
        stride: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Loss, perplexity, bits per byte and perplexity per word of texts.

        Args:
            data: files in the formats of training data, or records in memory.
            stride, progress: see `miniformer.tasks.common.scoring.score`.

        Raises:
            ValueError: the model is no causal language model, or a record is invalid.
        """
        task, tokenizer, _ = self._prepare_generation([], {})
        if task.name != "language_modeling" or not isinstance(self.model, Transformer):
            raise UserError(
                "perplexity needs a causal language model; for other models see score and the "
                "metrics of a test"
            )
        records = as_records(data, task.schema)
        return perplexity(task, self.model, tokenizer, records, stride=stride, progress=progress)

    def _prepare_generation(
        self, prompts: Sequence[str], options: dict[str, Any]
    ) -> tuple[TextGenerationTask, Tokenizer, GenerationConfig]:
        """Checks prompts, and returns task, tokenizer and decoding options."""
        settings = self._generation_config(options, stacklevel=4)
        for text in prompts:
            check_text(text, "prompt")
        if self.tokenizer is None and not self.task.reads_text():
            raise UserError(
                f"a model for {self.task.name} of vectors generates no text; use predict"
            )
        if not isinstance(self.task, TextGenerationTask):
            raise UserError(f"a model for {self.task.name} generates no text; use predict")
        tokenizer = self._require_tokenizer()
        assert tokenizer is not None
        return self.task, tokenizer, settings

    def _require_tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None: the task reads no text."""
        if self.tokenizer is None and self.task.reads_text():
            raise UserError(
                "the model was imported without a tokenizer.json, so it takes token ids only: "
                "use its `model`, or import it from a directory that has one"
            )
        return self.tokenizer

    def _generation_config(self, options: dict[str, Any], stacklevel: int = 3) -> GenerationConfig:
        options, problems = GenerationConfig.current_names(options)
        if problems:
            raise ConfigError("GenerationConfig", problems)
        own = dataclasses.asdict(self.generation)
        beams = options.get("num_beams")
        if isinstance(beams, int) and beams > 1:  # the model's sampling defaults do not apply
            own |= {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None}
        settings = GenerationConfig.from_dict({**own, **options})
        if settings.temperature == 0:
            for name in ("top_k", "top_p", "seed"):
                if options.get(name) is not None:
                    message = f"{name}={options[name]} has no effect with temperature=0"
                    warnings.warn(message, NoEffectWarning, stacklevel=stacklevel)
        return settings


def truncate_kwargs(truncate: bool) -> dict[str, bool]:
    """Keyword argument `truncate` if true: custom tasks of earlier versions lack it."""
    return {"truncate": True} if truncate else {}


def _resolve_draft(draft: Any) -> Speculation | None:
    """Converts the argument `draft` to a `Speculation`."""
    if draft is None or isinstance(draft, Speculation):
        return draft
    if hasattr(draft, "model"):
        return Speculation(draft.model)
    if draft == "lookup":
        return Speculation()
    raise UserError(f'draft must be a Pipeline, a Speculation or "lookup", not {draft!r}')
