"""Pipeline: a loaded model directory."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from miniformer import registry
from miniformer.checkpoint.artifacts import MODEL_CLASSES, get_model_kind, read_artifacts
from miniformer.checkpoint.card import render_default_card
from miniformer.checkpoint.data_settings import StoredDataSettings, read_data_settings
from miniformer.checkpoint.directory import read_hf_metadata, require_empty, save_directory
from miniformer.checkpoint.early_exit import read_exit_policy
from miniformer.checkpoint.input_checks import (
    as_inputs,
    check_batch_size,
    check_prompts,
    check_text,
    check_texts,
)
from miniformer.config import GenerationConfig, UserError
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.records import RecordSequence, as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.evaluation.evaluation import Evaluation, evaluate, with_comparison
from miniformer.evaluation.intervals import Bootstrap
from miniformer.generation.api import GenerationOutput
from miniformer.generation.inference import eval_mode, inference_model
from miniformer.generation.logits_processors import Processor
from miniformer.generation.speculative import Speculation
from miniformer.model.config_file import read_config
from miniformer.model.hub import resolve_directory, upload_directory
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.base import Task
from miniformer.tasks.common.scoring import ScoredText, perplexity, score
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.common.text_generation import TextGenerationTask, group_copies
from miniformer.tasks.embedding import EmbeddingTask, embed_batch

if TYPE_CHECKING:
    from miniformer.inspection.result import Inspection


def load(
    directory: str | Path, *, revision: str | None = None, adapter: str | Path | None = None
) -> Pipeline:
    """Loads a model directory: model, tokenizer and task. No file is unpickled or executed.

    Args:
        directory: a model directory, or a name on the hub such as "user/name".
        revision: branch, tag or commit of a name on the hub.
        adapter: adapter directory of this base, of this package or of peft, that is added to it.

    Raises:
        UserError: a file is missing or broken, or files do not fit each other.
    """
    directory = resolve_directory(directory, revision)
    if adapter is not None:
        pipeline: Pipeline = registry.get("adapter_format", "peft").load(directory, Path(adapter))
        return pipeline
    architecture, config = read_config(directory)
    tokenizer, task, generation = read_artifacts(directory, architecture, config)
    model = MODEL_CLASSES[get_model_kind(directory, architecture)].from_pretrained(directory)
    pipeline = Pipeline(model, tokenizer, task=task, generation=generation)
    pipeline.directory, pipeline.hf_metadata = directory, read_hf_metadata(directory)
    pipeline.data_settings = read_data_settings(directory)
    model.exit_policy = read_exit_policy(directory, model, task)
    return pipeline


class Pipeline:
    """A model with its tokenizer and task.

    Args:
        model: the model.
        tokenizer: its tokenizer; None: the model reads no text, or takes token ids only.
        task: the task it was trained for, fitted to its training data.
        generation: default decoding options; None: those of the task.
    """

    def __init__(
        self,
        model: Transformer | Seq2SeqTransformer,
        tokenizer: Tokenizer | None,
        task: Task,
        generation: GenerationConfig | None = None,
    ) -> None:
        if generation is None and tokenizer is not None:
            generation = task.default_generation_config(model.config, tokenizer)
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.generation = generation or GenerationConfig()
        # How training read and batched its data; the loaded directory and its metadata.
        self.data_settings = StoredDataSettings()
        self.directory: Path | None = None
        self.hf_metadata: dict[str, Any] = {}

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        model = f"{type(self.model).__name__} of {size:,} parameters"
        source = "" if self.directory is None else f", directory={str(self.directory)!r}"
        return f"Pipeline({self.task.name}: {model}{source})"

    def _repr_html_(self) -> str:
        from miniformer.checkpoint.summary import render_summary  # for notebooks only

        return render_summary(self)

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **options: Any) -> list[str]: ...
    def generate(self, prompt: str | Sequence[str], **options: Any) -> Any:
        """Generates continuations of one or more prompts, or seq2seq targets.

        Args:
            prompt: one or more prompts of any lengths; an empty prompt starts a new document.
            processors: functions that change logits; see `miniformer.generation.logits_processors`.
            draft: proposes tokens for speculative decoding: a smaller model's `Pipeline`, "lookup"
                for prompt lookup, "layers:N" for the model's first N layers, or a `Speculation`.
            truncate: truncate prompts that are too long: a source at the end, as training does; a
                prompt of a causal model at the beginning, so that `max_new_tokens` fit.
            **options: fields of `GenerationConfig` that override those of the model directory.

        Returns:
            The text after the prompt: a string for a string, a list for a list; with
            `num_return_sequences` above 1 a list in place of each string.

        Raises:
            UserError: the prompts are neither a string nor a list of strings, an option is unknown
                or out of range, a prompt leaves no room for `max_new_tokens` within `max_seq_len`,
                or the model generates no text.
        """
        prompts = [prompt] if isinstance(prompt, str) else check_prompts(prompt)
        task, arguments = self._prepare_generation(prompts, **options)
        outputs = task.generate(prompts=prompts, **arguments)
        texts = group_copies([text for text, _ in outputs], arguments["options"])
        return texts[0] if isinstance(prompt, str) else texts

    def generate_outputs(
        self, prompts: Sequence[str], **options: Any
    ) -> list[tuple[str, GenerationOutput]]:
        """Generates text with token ids, log-probabilities and scores; see `generate`.

        Returns:
            A text and a `GenerationOutput` each: `num_return_sequences` of the first prompt, and so
            on.
        """
        prompts = check_prompts(prompts)
        task, arguments = self._prepare_generation(prompts, **options)
        return task.generate(prompts=prompts, **arguments)

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Streams the answer to one prompt in chunks of complete characters; see `generate`.

        Raises:
            UserError: the prompt is not a string, or as `generate`.
        """
        if not isinstance(prompt, str):
            raise UserError(
                f"stream takes one prompt, a string, not a {type(prompt).__name__}; generate takes "
                "several"
            )
        task, arguments = self._prepare_generation([prompt], **options)
        return task.stream(prompt=prompt, **arguments)

    async def astream(self, prompt: str, **options: Any) -> AsyncIterator[str]:
        """Streams for `async for`; the model runs in a thread. See `stream`."""
        chunks = self.stream(prompt, **options)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk

    def continues_prompts(self) -> bool:
        """Returns whether generated texts continue their prompts; seq2seq answers sources."""
        return bool(getattr(self.task, "continues_prompts", True))

    def _prepare_generation(
        self,
        prompts: Sequence[str],
        *,
        processors: Sequence[Processor] = (),
        draft: Any = None,
        truncate: bool = False,
        **options: Any,
    ) -> tuple[TextGenerationTask, dict[str, Any]]:
        """Checks prompts and options; returns the task and arguments of its `generate`."""
        config = self.generation.override(options, stacklevel=4)
        task = self._generation_task(prompts)
        return task, {
            "model": self.model,
            "tokenizer": self._require_tokenizer(),
            "options": config,
            "processors": processors,
            "speculation": Speculation.from_draft(draft),
            **_truncate_argument(truncate),
        }

    def predict(
        self, inputs: Any, *, truncate: bool = False, batch_size: int | None = None, **options: Any
    ) -> Any:
        """Predictions for one input or several: texts, pairs of texts, or feature vectors.

        Args:
            inputs: one input, in the format of `input` or `source` of records, or a list of them.
                A string is one input. For a model of pairs, a list of two strings is one pair, and
                several pairs are a list of such lists. For a model of vectors, a list of vectors is
                one input; for a model of tokens, a list of strings is the tokens of one input. A
                tuple, an array or a column of a frame may take the place of a list.
            truncate: truncate inputs longer than `max_seq_len`, as training does.
            batch_size: inputs at once; None: by their lengths. Predictions do not depend on it,
                beyond rounding.
            **options: fields of `GenerationConfig`, for seq2seq; of `weight_dtype`, for all models
                on a CPU.

        Returns:
            The prediction of one input, or a list of them. A prediction is, for classification, a
            dict of `label`, `score` and `scores`, or of `labels` and `scores`; for regression a
            number; for seq2seq a string, or a list of the best with `num_return_sequences` above 1;
            for tokens a dict of `tokens`, `tags` and more.

        Raises:
            InputError: inputs differ in kind from the training data, or are too long; its
                `problems` are by input number.
            UserError: the inputs are of another type, or an option is unknown or out of range.
        """
        inputs, options = as_inputs(inputs), {**options, "batch_size": batch_size}
        if self.task.is_single_input(inputs):
            return self.predict_all([inputs], truncate=truncate, **options)[0]
        return self.predict_all(inputs, truncate=truncate, **options)

    def predict_all(
        self,
        inputs: Sequence[Any],
        *,
        truncate: bool = False,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """Predictions for several inputs, also where they could be taken for one; see `predict`."""
        config = self.generation.override(options)
        check_texts(inputs)
        given: dict[str, Any] = {
            "truncate": truncate or None,
            "batch_size": check_batch_size(batch_size),
        }
        model = self.model
        if not isinstance(self.task, TextGenerationTask):  # decoding chooses the type itself
            model = inference_model(model, config.weight_dtype)
        with eval_mode(model):
            return self.task.predict(
                model,
                self._require_tokenizer(),
                inputs,
                config,
                # Custom tasks of earlier versions lack these arguments.
                **{name: value for name, value in given.items() if value is not None},
            )

    def evaluate(
        self,
        data: DataFiles | RecordSequence,
        *,
        by: str | None = None,
        against: Pipeline | str | Path | None = None,
        batch_size: int | None = None,
        num_resamples: int = 1000,
        seed: int = 0,
        weight_dtype: str = "float32",
        progress: Callable[[int, int], None] | None = None,
        **fields: Any,
    ) -> Evaluation:
        """Evaluates the model on labeled records.

        Args:
            data: files in the formats of training data, or records in memory: a list of dicts, a
                frame, a data set.
            by: a field of the records; metrics are also computed for each of its values.
            against: another model for the same task, or its directory, for paired tests.
            batch_size: see `DataSettings`; None: that of training, which gives the metrics of its
                test to the last digit.
            num_resamples: bootstrap resamples of the 95 % intervals; 0: no intervals.
            seed: seed of the resamples.
            weight_dtype: type of the weights on a CPU, as of `predict`; float32: the weights of the
                directory, without rounded inputs. `against` is evaluated with the same.
            progress: called with (records done, all records).
            **fields: fields of `FieldSettings`, such as input_field="text"; those of the training
                data by default.

        Raises:
            UserError: the task has no labels, a record is invalid, or an option is.
        """
        if isinstance(self.task, EmbeddingTask):
            raise UserError("a model for embedding has no labels to compare with; use embed")
        if against is not None and num_resamples < 1:
            raise UserError("against needs num_resamples of 1 or more")
        given = GenerationConfig.from_dict({"weight_dtype": weight_dtype})
        model = self.model
        if not isinstance(self.task, TextGenerationTask):
            model = inference_model(model, weight_dtype)
        elif given.converts_weights:
            raise UserError(
                f"weight_dtype={weight_dtype} is for models that predict; the loss of texts is "
                "computed in float32; leave it out"
            )
        settings = self.data_settings
        if (batch_size := check_batch_size(batch_size)) is not None:
            settings = dataclasses.replace(settings, batch_size=batch_size, batch_tokens=None)
        mapping = settings.override(fields)
        mapping.check_fields(self.task.schema)
        evaluation = evaluate(
            model,
            self.task,
            self._require_tokenizer(),
            as_records(data, self.task.schema, mapping=mapping),
            settings.batches(),
            by=by,
            bootstrap=Bootstrap(num_resamples, seed),
            progress=progress,
        )
        if against is None:
            return evaluation
        baseline = against if isinstance(against, Pipeline) else load(against)
        name = str(baseline.directory or "the other model")
        baseline_evaluation = baseline.evaluate(
            data, batch_size=batch_size, num_resamples=0, weight_dtype=weight_dtype,
            progress=progress, **fields,
        )  # fmt: skip
        return with_comparison(evaluation, baseline_evaluation, name)

    def embed(
        self, inputs: Sequence[Any], *, truncate: bool = False, weight_dtype: str | None = None
    ) -> Tensor:
        """One vector for each input: [N, d_model], as the model's `pooling` says.

        Args:
            inputs: in the format of `input` of records: texts, pairs of texts, or feature vectors.
            truncate: truncate inputs longer than `max_seq_len`, as training does.
            weight_dtype: see `GenerationConfig`; None: that of the model directory.

        Raises:
            ValueError: an input is invalid or too long, or the model is seq2seq.
        """
        if isinstance(inputs, str):
            raise UserError("embed takes a list of inputs; use [input] for a single one")
        inputs = as_inputs(inputs)
        if not isinstance(self.model, Transformer):
            raise UserError("a seq2seq model has no single vector for a text; use an encoder")
        check_texts(inputs)
        # The task encodes inputs as in training: features standardized, shared tokens marked.
        task = self.task if isinstance(self.task, InputTask) else EmbeddingTask(input_kind="text")
        tokenizer = self._require_tokenizer()
        given = {} if weight_dtype is None else {"weight_dtype": weight_dtype}
        model = inference_model(self.model, self.generation.override(given).weight_dtype)
        with eval_mode(model):
            vectors = task.predict_outputs(
                model, tokenizer, inputs, truncate=truncate, output_fn=embed_batch
            )
        return torch.empty(0, self.model.config.d_model) if vectors is None else vectors

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
        texts = check_prompts(texts, "score", "texts")
        prompts = [""] * len(texts) if prompts is None else check_prompts(prompts, "score")
        if len(prompts) != len(texts):
            raise UserError(f"{len(texts)} texts need as many prompts, not {len(prompts)}")
        task, tokenizer = self._generation_task([*prompts, *texts]), self._require_tokenizer()
        if truncate and not isinstance(self.model, Seq2SeqTransformer):
            raise UserError("truncate is for sources; texts of any length are scored in windows")
        inputs = task.generation_inputs(
            self.model, tokenizer, prompts, **_truncate_argument(truncate)
        )
        return score(self.model, inputs, tokenizer.encode_batch(texts), stride=stride)

    def inspect(
        self, value: Any, target: str | None = None, *, top_k: int = 5, truncate: bool = False
    ) -> Inspection:
        """Attention, hidden states, logit lens and log-probabilities of one input.

        The result has a text form, an HTML form, and plots in `miniformer.inspection.plots`.

        Args:
            value: one input in the format of `predict`; of a language model, a text.
            target: target of a seq2seq model; None: the one that it generates.
            top_k: tokens or classes of each row of the logit lens.
            truncate: truncate an input that is too long, as training does.

        Raises:
            UserError: the input is of another kind or too long, or a target is of no use.
        """
        # The inputs of every task need its module, one of which imports torchmetrics for seconds.
        from miniformer.inspection.inspect import inspect_input

        tokenizer, ids = self._require_tokenizer(), None
        if isinstance(self.model, Seq2SeqTransformer):
            ids = self._target_ids(value, target, truncate)
        elif target is not None:
            raise UserError("a target is for seq2seq models; leave it out")
        return inspect_input(
            self.task, self.model, tokenizer, value, ids, top_k=top_k, truncate=truncate
        )

    def _target_ids(self, source: Any, target: str | None, truncate: bool) -> list[int]:
        """Token ids of a target; None: of the one that the model generates for the source."""
        if (check := getattr(self.task, "check_sources", None)) is not None:
            check([source])
        if target is not None:
            return list(self._require_tokenizer().encode(target))
        task, arguments = self._prepare_generation([], truncate=truncate)
        options = dataclasses.replace(arguments.pop("options"), num_return_sequences=1)
        return task.generate(prompts=[source], options=options, **arguments)[0][1].tokens

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
        if self.task.name != "language_modeling" or not isinstance(self.model, Transformer):
            kind = "an encoder-decoder" if self.task.name == "language_modeling" else self.task.name
            raise UserError(
                f"perplexity needs a causal language model, and this model is for {kind}; for its "
                "metrics on records use evaluate"
            )
        task, tokenizer = self._generation_task(), self._require_tokenizer()
        records = as_records(data, task.schema, mapping=self.data_settings.mapping())
        return perplexity(task, self.model, tokenizer, records, stride=stride, progress=progress)

    def _generation_task(self, texts: Sequence[str] = ()) -> TextGenerationTask:
        """The task, if it generates text; checks texts."""
        for text in texts:
            check_text(text, "prompt")
        if self.tokenizer is None and not self.task.reads_text():
            raise UserError(
                f"a model for {self.task.name} of vectors generates no text; use predict"
            )
        if not isinstance(self.task, TextGenerationTask):
            raise UserError(f"a model for {self.task.name} generates no text; use predict")
        return self.task

    def _require_tokenizer(self) -> Any:
        """The tokenizer; None: the task reads no text."""
        if self.tokenizer is None and self.task.reads_text():
            raise UserError(
                "the model was imported without a tokenizer.json, so it takes token ids only: "
                "use its `model`, or import it from a directory that has one"
            )
        return self.tokenizer

    def save(self, directory: str | Path) -> None:
        """Writes a model directory, which `load` reads.

        Args:
            directory: must not exist, or be empty.

        Raises:
            UserError: the directory is not empty.
        """
        directory = Path(directory)
        require_empty(directory)
        card = Path() if self.directory is None else self.directory / "README.md"
        save_directory(
            directory,
            model=self.model,
            tokenizer=self.tokenizer,
            task=self.task.settings(),
            generation=self.generation,
            model_card=(
                card.read_text(encoding="utf-8") if card.is_file() else render_default_card(self)
            ),
            hf_metadata=self.hf_metadata,
            source_directory=self.directory,
            data=self.data_settings,
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


def _truncate_argument(truncate: bool) -> dict[str, bool]:
    """Argument `truncate` if true: custom tasks of earlier versions lack it."""
    return {"truncate": True} if truncate else {}
