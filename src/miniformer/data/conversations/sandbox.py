"""Jinja environment of chat templates: no access to Python, and limits of work and size.

A template comes from others, as a model does. Its loops, calls and texts are counted, so that it
cannot run forever or fill the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_LENGTH = 1_000_000  # characters of a text
MAX_STEPS = 100_000  # iterations and calls of a rendering


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`: the text that an assistant writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of `_mark`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        first, last = self.environment.generation_marks  # type: ignore[attr-defined]
        return f"{first}{caller()}{last}"


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template.

    Attributes:
        generation_marks: texts around each `{% generation %}` block.
        has_generation_tag: a template that was parsed has such a block.
    """

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
        )
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        self.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, indent=options.get("indent")
        )
        self.filters["_counted"], self.filters["_limited"] = self._counted, _limited
        self.generation_marks, self.has_generation_tag, self._steps = ("", ""), False, 0

    def start(self, generation_marks: tuple[str, str]) -> None:
        """Starts a rendering."""
        self._steps, self.generation_marks = 0, generation_marks

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        self.has_generation_tag |= any(
            isinstance(node.call.node, nodes.ExtensionAttribute)
            for node in template.find_all(nodes.CallBlock)
        )
        for loop in list(template.find_all(nodes.For)):
            loop.iter = _filtered(loop.iter, "_counted")
        for parent in [template, *template.find_all(nodes.Node)]:
            for field, value in list(parent.iter_fields()):
                if isinstance(value, nodes.Concat):
                    setattr(parent, field, _filtered(value, "_limited"))
        return template

    def call(self, *args: Any, **options: Any) -> Any:
        """A call of a template, counted."""
        self._step()
        return super().call(*args, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation whose result may be large."""
        sizes = [len(item) for item in (left, right) if isinstance(item, str | list | tuple)]
        numbers = [item for item in (left, right) if isinstance(item, int)]
        if operator == "**" or any(abs(number) > 2**62 for number in numbers):
            numbers = [abs(number) for number in numbers]
            if len(numbers) == 2 and (operator != "**" or numbers[1] > 64 or numbers[0] > 2**32):
                raise TemplateError("it computes with numbers that are too large")
        size = sum(sizes) if operator == "+" else sizes[0] * max(numbers, default=0) if sizes else 0
        if size > MAX_LENGTH:
            raise TemplateError(f"it makes a text of more than {MAX_LENGTH:,} characters")
        return super().call_binop(context, operator, left, right)

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise TemplateError(f"it takes more than {MAX_STEPS:,} steps; a loop may never end")


def _filtered(node: Any, name: str) -> nodes.Expr:
    wrapped = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    wrapped.set_environment(node.environment)
    return wrapped


def _limited(text: str) -> str:
    if len(text) > MAX_LENGTH:
        raise TemplateError(f"it makes a text of more than {MAX_LENGTH:,} characters")
    return text


def _raise(message: str) -> None:
    raise TemplateError(message)
