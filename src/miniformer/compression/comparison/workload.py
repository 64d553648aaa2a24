"""The same work for compared models: inputs of the records of a data set."""

from __future__ import annotations

import dataclasses
from itertools import cycle, islice
from typing import Any

from miniformer.config import UserError
from miniformer.data.reading.records import Records

BATCH_SIZES = (1, 16)
_PROMPT_CHARACTERS = 64  # of a text that a language model continues
_FIELDS = ("source", "prompt", "input", "tokens", "text")


@dataclasses.dataclass(frozen=True)
class Workload:
    """Work that is measured.

    Args:
        inputs: at least one: prompts, sources, or inputs of `predict`.
        tokens: tokens that are generated for each input, whatever they are; 0: the model predicts
            or embeds.
    """

    inputs: list[Any]
    tokens: int

    @property
    def unit(self) -> str:
        """The unit of work in a second."""
        return "tokens" if self.tokens else "records"

    def batch(self, size: int) -> list[Any]:
        """`size` inputs; they repeat if there are fewer."""
        return list(islice(cycle(self.inputs), size))

    def amount(self, size: int) -> int:
        """Tokens or records of a batch."""
        return size * (self.tokens or 1)


def make_workload(task: Any, records: Records, tokens: int) -> Workload:
    """The work of a task.

    Args:
        task: the task of the compared models.
        records: labeled records.
        tokens: tokens to generate for an input, if the model generates.

    Raises:
        UserError: no record has an input.
    """
    rows = records.read(range(min(max(BATCH_SIZES), len(records))))
    generates = hasattr(task, "continues_prompts")
    inputs = [_input_of(row, generates) for row in rows]
    inputs = [value for value in inputs if value not in (None, "", [])]
    if not inputs:
        raise UserError(f"{records.name}: no record has an input to measure with")
    return Workload(inputs, tokens if generates else 0)


def _input_of(record: Any, generates: bool) -> Any:
    """The input of a record; of a language model the beginning of a text."""
    if "messages" in record:
        contents = (message.get("content") for message in record["messages"])
        return next((x for x in contents if isinstance(x, str) and x), "")[:_PROMPT_CHARACTERS]
    value = next((record[name] for name in _FIELDS if name in record), None)
    if generates and "text" in record and isinstance(value, str):
        return value[:_PROMPT_CHARACTERS]
    return value
