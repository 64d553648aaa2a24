"""The model that checks run on, with its directory where it has one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.doctor.outcome import NotApplicable


@dataclasses.dataclass
class Subject:
    """A model to check; its parts are loaded when a check names them.

    Args:
        directory: model directory; None: a model in memory.
        in_memory: the model, without a directory.
    """

    directory: Path | None = None
    in_memory: Any = None

    @cached_property
    def pipeline(self) -> Any:
        """The loaded directory.

        Raises:
            NotApplicable: there is no directory, or it cannot be loaded.
        """
        from miniformer.checkpoint.pipeline import load

        if self.directory is None:
            raise NotApplicable("it reads a model directory")
        try:
            return load(self.directory)
        except UserError:
            raise NotApplicable("the directory does not load as a pipeline") from None

    @cached_property
    def model(self) -> Any:
        """The model in eval mode, with or without the other files of its directory.

        Raises:
            NotApplicable: its files cannot be loaded.
        """
        if self.in_memory is not None:
            return self.in_memory
        try:
            return load_model(self.directory)
        except UserError:
            raise NotApplicable("the model does not load") from None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            NotApplicable: there is none.
        """
        tokenizer = self.pipeline.tokenizer
        if tokenizer is None:
            raise NotApplicable("the model has no tokenizer")
        return tokenizer

    def arguments(self, check: Callable[..., Any]) -> dict[str, Any]:
        """Values of the parameters that a check names, of these: model, directory, ...

        Raises:
            NotApplicable: the subject lacks one of them.
        """
        names = ("model", "directory", "pipeline", "tokenizer")
        values = {
            name: getattr(self, name)
            for name in inspect.signature(check).parameters
            if name in names
        }
        if values.get("directory", self) is None:
            raise NotApplicable("it reads a model directory")
        return values


def load_model(directory: Path | None) -> Any:
    """The model of a directory, in eval mode.

    Raises:
        UserError: a file is missing or broken.
    """
    from miniformer.model.config_file import read_config
    from miniformer.model.seq2seq import Seq2SeqTransformer
    from miniformer.model.transformer import Transformer

    assert directory is not None
    architecture, _ = read_config(directory)
    model_class = Seq2SeqTransformer if architecture == "Seq2SeqTransformer" else Transformer
    return model_class.from_pretrained(directory)
