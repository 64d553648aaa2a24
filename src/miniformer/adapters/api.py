"""Adapters of a model in Python, and the transform by which model directories name them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from miniformer.adapters import files
from miniformer.adapters.by_input import use_task
from miniformer.adapters.settings import make_settings
from miniformer.adapters.state import (
    DEFAULT_NAME,
    add_adapter,
    merge_adapter,
    state_of,
    unmerge_adapter,
    use_adapter,
)
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError

Model = TypeVar("Model", bound=nn.Module)
TRANSFORM = "adapter"


def adapter(
    model: Model, *, method: str = "lora", name: str = DEFAULT_NAME, **options: Any
) -> Model:
    """The transform `adapter`: adds an adapter to a model that is built; see `add`."""
    # The values of the base are not known yet when a directory is read.
    add_adapter(model, name, make_settings(method, options), keep_base=False)
    return model


def add(model: Model, method: str = "lora", *, name: str = DEFAULT_NAME, **options: Any) -> Model:
    """Adds an adapter to a model and uses it; only its weights are trained.

    Args:
        model: a Transformer or Seq2SeqTransformer, which is changed.
        method: lora, dora, ia3, bottleneck or bitfit.
        name: name of the adapter.
        **options: fields of the settings of the method, such as `r=8`; see `settings.py`.

    Returns:
        The model.

    Raises:
        UserError: the name is taken, an option is invalid, or a target matches nothing.
    """
    settings = make_settings(method, options)
    add_adapter(model, name, settings, keep_base=True)
    earlier: Sequence[Any] = getattr(model, "transforms", ())
    setting = {"type": TRANSFORM, "method": method, "name": name, **settings.to_options()}
    model.transforms = (*earlier, setting)  # type: ignore[assignment]
    return model


def load(
    pipeline: Pipeline, adapter: str | Path, *, name: str, base: str | Path | None = None
) -> None:
    """Adds an adapter directory to a loaded base and uses it; several share one base.

    Args:
        pipeline: the base, from `miniformer.load`.
        adapter: adapter directory of this base, of this package or of peft.
        name: name of the adapter.
        base: model directory of the base; None: that of the pipeline.

    Raises:
        UserError: the adapter is of another base, or the name is taken.
    """
    files.add_directory(pipeline, adapter, name=name, base=base)


def save(pipeline: Pipeline, out: str | Path, *, base: str | Path, name: str | None = None) -> None:
    """Writes an adapter of a pipeline's model as an adapter directory.

    Args:
        pipeline: the model with its task.
        out: the directory to write, which is replaced.
        base: model directory of the base, whose hash the adapter has.
        name: name of the adapter; None: the last one.

    Raises:
        UserError: the model has no adapter of the name.
    """
    files.save(pipeline, out, base=base, name=name)


def names(model: nn.Module) -> list[str]:
    """Names of the adapters of a model."""
    return [*state_of(model).entries]


def use(model: nn.Module | Pipeline, selection: str | Sequence[str | None] | None) -> None:
    """Uses an adapter, or one for each row of the batches that follow, or none.

    Args:
        model: a model with adapters; or a pipeline, which gets the task of the adapter.
        selection: a name; a name or None for each row; None: the base.

    Raises:
        UserError: there is no adapter of a name, one is merged, or rows cannot differ.
    """
    if isinstance(model, nn.Module):
        use_adapter(model, selection)
    elif selection is None or isinstance(selection, str):
        use_task(model, selection)
    else:
        raise UserError(
            "adapters.use: a pipeline uses one adapter; pass its model for rows, or call "
            "adapters.generate or adapters.predict with a name for each input"
        )


@contextlib.contextmanager
def disable(model: nn.Module) -> Iterator[None]:
    """Context in which the model is its base, bit for bit."""
    selection = state_of(model).selection
    use_adapter(model, None)
    try:
        yield
    finally:
        use_adapter(model, selection)


def merge(model: nn.Module) -> None:
    """Computes the weights with the adapter in use once, so that calls cost what the base costs.

    The weights of the base stay as they are, also in a model directory; `merge_transforms` makes a
    plain model.

    Raises:
        UserError: not one adapter is in use, or it is a bottleneck.
    """
    merge_adapter(model)


def unmerge(model: nn.Module) -> None:
    """Reverses `merge`: the outputs have the bits of before."""
    unmerge_adapter(model)
