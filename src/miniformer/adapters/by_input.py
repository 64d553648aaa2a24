"""Predictions and texts of inputs with an adapter each.

inputs of one adapter -> the adapter with its head and task in use -> results in the given order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from miniformer.adapters.state import state_of, use_adapter
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import InputError, UserError
from miniformer.registry import unknown_name_message


def generate(
    pipeline: Pipeline, prompts: Sequence[str], names: Sequence[str | None], **options: Any
) -> list[Any]:
    """Generates continuations of prompts, each with an adapter of its own.

    The prompts of one adapter are a batch, which the kernels decode. Each has the text that
    `pipeline.generate` gives with its adapter in use.

    Args:
        pipeline: a base with adapters, see `adapters.load`.
        prompts: the prompts.
        names: adapter of each prompt; None: the base.
        **options: see `Pipeline.generate`. Without them, those of each adapter are in use.

    Raises:
        UserError: there is no adapter of a name, or a prompt or an option is invalid.
    """
    return _by_adapter(pipeline, prompts, names, lambda rows: pipeline.generate(rows, **options))


def predict(
    pipeline: Pipeline, inputs: Sequence[Any], names: Sequence[str | None], **options: Any
) -> list[Any]:
    """Predictions of inputs, each with an adapter of its own, its head and its task.

    Args:
        pipeline: a base with adapters, see `adapters.load`.
        inputs: inputs in the format of `Pipeline.predict`.
        names: adapter of each input; None: the base.
        **options: see `Pipeline.predict_all`.

    Raises:
        InputError: inputs are invalid, or their names; its `problems` are by input number.
        UserError: the numbers of inputs and names differ, or an option is invalid.
    """
    return _by_adapter(pipeline, inputs, names, lambda rows: pipeline.predict_all(rows, **options))


def use_task(pipeline: Pipeline, name: str | None) -> None:
    """Uses an adapter of a pipeline, with its head, task and decoding options.

    Args:
        pipeline: a base with adapters.
        name: the adapter; None: the base.

    Raises:
        UserError: there is no adapter of the name.
    """
    use_adapter(pipeline.model, name)
    tasks = vars(pipeline).get("adapter_tasks", {})
    if name in tasks:
        pipeline.task, pipeline.generation, pipeline.tokenizer = tasks[name]


def _by_adapter(
    pipeline: Pipeline,
    inputs: Sequence[Any],
    names: Sequence[str | None],
    function: Callable[[list[Any]], Sequence[Any]],
) -> list[Any]:
    """Results of a function for the inputs of each adapter, in the order of the inputs."""
    inputs, state = list(inputs), state_of(pipeline.model)
    if isinstance(names, str) or len(names) != len(inputs):
        given = repr(names) if isinstance(names, str) else str(len(names))
        raise UserError(f"{len(inputs)} inputs need a list of as many adapters, not {given}")
    known = [*state.entries]
    problems = {
        number: f"has the {unknown_name_message('adapter', name, known)}"
        for number, name in enumerate(names)
        if name is not None and name not in known
    }
    results: dict[int, Any] = {}
    earlier = state.selection
    artifacts = (pipeline.task, pipeline.generation, pipeline.tokenizer)
    try:
        for name in dict.fromkeys(names):
            if name is not None and name not in known:
                continue
            rows = [number for number, own in enumerate(names) if own == name]
            pipeline.task, pipeline.generation, pipeline.tokenizer = artifacts
            use_task(pipeline, name)
            try:
                results |= zip(rows, function([inputs[row] for row in rows]), strict=True)
            except InputError as error:
                problems |= {rows[number]: text for number, text in error.problems.items()}
    finally:
        use_adapter(pipeline.model, earlier)
        pipeline.task, pipeline.generation, pipeline.tokenizer = artifacts
    if problems:
        raise InputError(dict(sorted(problems.items())))
    return [results[number] for number in range(len(inputs))]
