"""Pipeline: a model directory, loaded and ready to use."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any, overload

from miniformer import registry
from miniformer.config import GenerationConfig, NoEffectWarning, UserError
from miniformer.data.tokenizer import Tokenizer
from miniformer.generation.generate import generate_ragged
from miniformer.model.transformer import Transformer


def load(directory: str | Path) -> Pipeline:
    """Loads a model directory: model, tokenizer and task. Nothing in it is unpickled or run.

    Raises:
        UserError: a file is missing or broken, or they do not fit each other.
    """
    directory = Path(directory)
    model = Transformer.from_pretrained(directory)
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{directory}: tokenizer.json has {tokenizer.vocab_size} ids, more than the model's "
            f"vocab_size={model.config.vocab_size}; they belong to different models"
        )
    task = _read_task(directory / "task.json")
    generation = GenerationConfig.from_file(directory / "generation_config.json")
    return Pipeline(model, tokenizer, task=task, generation=generation)


class Pipeline:
    """A model with its tokenizer and task.

    Args:
        model: a causal model.
        tokenizer: its tokenizer.
        task: the task's settings, from `task.json`.
        generation: default decoding settings.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        task: dict[str, Any],
        generation: GenerationConfig,
    ) -> None:
        self.model, self.tokenizer, self.task, self.generation = model, tokenizer, task, generation

    @overload
    def generate(self, prompt: str, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], **options: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str], **options: Any) -> str | list[str]:
        """Continues a prompt, or several of any lengths at once.

        Args:
            prompt: the text or texts to continue; an empty one begins a new document.
            **options: fields of `GenerationConfig`, over the model directory's own.

        Returns:
            What comes after the prompt: a string for a string, a list for a list.

        Raises:
            ValueError: an option is unknown or out of its limits, or a prompt leaves no room for
                `max_new_tokens` within `max_seq_len`.
        """
        settings = GenerationConfig.from_dict({**dataclasses.asdict(self.generation), **options})
        if settings.temperature == 0:
            for name in ("top_k", "top_p", "seed"):
                if options.get(name) is not None:
                    message = f"{name}={options[name]} has no effect with temperature=0"
                    warnings.warn(message, NoEffectWarning, stacklevel=2)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = [self._encode(text) for text in prompts]
        continued = generate_ragged(self.model, rows, settings)
        texts = [
            self.tokenizer.decode(new[len(row) :]) for row, new in zip(rows, continued, strict=True)
        ]
        return texts[0] if isinstance(prompt, str) else texts

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"prompt: character {error.start} is {text[error.start]!a}, half of a surrogate "
                "pair and no text by itself; is the prompt UTF-8?"
            ) from None
        ids = self.tokenizer.encode(text)
        begins = self.task["prompt_begins_document"] or not ids
        return [self.tokenizer.boundary_id, *ids] if begins else ids


def _read_task(path: Path) -> dict[str, Any]:
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
        name, begins = task["task"], task["prompt_begins_document"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory needs its task") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a task description: {error!r}") from None
    if name not in registry.names("task"):
        raise UserError(f"{path}: {registry.unknown('task', name, registry.names('task'))}")
    if not isinstance(begins, bool):
        raise UserError(f"{path}: prompt_begins_document must be true or false, not {begins!r}")
    return dict(task)
