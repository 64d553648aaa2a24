"""Components of installed packages: entry points in groups such as `miniformer.norm`.

A kind is an entry point in `miniformer.kind`; its object is the text of the interface, or a
documented class. A package states the versions of this interface that it supports as a keyword:

    [project]
    keywords = ["miniformer_api>=1,<2"]
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import traceback
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from miniformer.utils.errors import UserError

# Version of the interfaces of plugins. The first number grows if a plugin of before cannot work,
# the second with each addition.
API_VERSION = (1, 0)
KIND_GROUP = "kind"
_API_KEYWORD = "miniformer_api"
_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|~=|>|<)\s*(\d+(?:\.\d+)?)\s*")


class PluginError(UserError):
    """A component of a package cannot be used.

    Args:
        kind, name: kind and name of the component.
        message: the error, with its cause.
    """

    def __init__(self, kind: str, name: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.name = kind, name

    def __reduce__(self) -> tuple[type[PluginError], tuple[str, str, str]]:
        return type(self), (self.kind, self.name, str(self))


@cache
def _find_entry_points(kind: str) -> list[EntryPoint]:
    return list(entry_points(group=f"miniformer.{kind}"))


def entry_points_of(kind: str, taken: Iterable[str]) -> dict[str, EntryPoint]:
    """Entry points of a kind by name.

    Args:
        kind: the kind, or `KIND_GROUP`.
        taken: names of the kind that are built in, or registered in this process.

    Raises:
        UserError: two packages claim a name, or one claims a taken name.
    """
    entries: dict[str, EntryPoint] = {}
    for entry in _find_entry_points(kind):
        owner = "Miniformer or this process" if entry.name in taken else None
        if entry.name in entries:
            owner = origin(entries[entry.name])
        if owner is not None:
            raise UserError(
                f"{kind} {entry.name!r} is claimed by two: {owner}, and {origin(entry)}; uninstall "
                "one, or rename its component"
            )
        entries[entry.name] = entry
    return entries


def origin(entry: EntryPoint) -> str:
    """The package of an entry point, with its version and its import path."""
    return f"{_package(entry)} ({entry.value})"


def _package(entry: EntryPoint) -> str:
    return "a package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def load(kind: str, entry: EntryPoint) -> Any:
    """Imports the component of a package.

    Raises:
        PluginError: it needs another version of the interface, or its import fails.
    """
    problem = _api_problem(entry)
    if problem is None:
        try:
            return entry.load()
        except (Exception, SystemExit) as error:
            problem = f"cannot be imported: {describe_error(error, entry.module)}"
            cause: BaseException | None = error
    else:
        cause = None
    raise PluginError(
        kind, entry.name, f"{kind} {entry.name!r} of {origin(entry)} {problem}"
    ) from cause


def describe_error(error: BaseException, module: str) -> str:
    """Type, message and, if code of the plugin raised the error, its file and line.

    Args:
        error: the error, with its traceback.
        module: a module of the plugin.
    """
    text, position = str(error), _last_line_of(error, module)
    if isinstance(error, SyntaxError) and error.filename:
        text, position = error.msg, f"{error.filename}:{error.lineno}"
    described = f"{type(error).__name__}: {' '.join(text.split())}".removesuffix(": ")
    return described if position is None else f"{described} ({position})"


def _last_line_of(error: BaseException, module: str) -> str | None:
    """`file:line` of the last call in the code of a plugin; None: there is none."""
    top = module.partition(".")[0]
    source = _find_source(top)
    if source is None or top == __name__.partition(".")[0]:
        return None
    root = source.parent if source.name == "__init__.py" else source
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(root)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _api_problem(entry: EntryPoint) -> str | None:
    """Reason why the package of an entry point needs another version; None: it does not."""
    specifier = _api_specifier(",".join(_metadata(entry, "Keywords")))
    if specifier is None:
        return None
    comparisons = [_COMPARISON.fullmatch(part) for part in specifier.split(",")]
    if not all(comparisons):
        return (
            f"has the keyword {_API_KEYWORD + specifier!r}, which is no version specifier such as "
            f"'{_API_KEYWORD}>=1,<2'"
        )
    if all(_holds(*match.groups()) for match in comparisons if match):
        return None
    current = ".".join(map(str, API_VERSION))
    return (
        f"needs {_API_KEYWORD}{specifier}, and this Miniformer has {_API_KEYWORD} {current}; "
        f"install a version of {_package(entry).partition(' ')[0]} for it, or another Miniformer"
    )


def _api_specifier(keywords: str) -> str | None:
    """The specifier among comma-separated keywords, whose own commas separate its comparisons."""
    parts = [part.strip() for part in keywords.split(",")]
    for index, part in enumerate(parts):
        if part.startswith(_API_KEYWORD):
            comparisons = [part.removeprefix(_API_KEYWORD).strip()]
            for following in parts[index + 1 :]:
                if not following.startswith(("<", ">", "=", "!", "~")):
                    break
                comparisons.append(following)
            return ",".join(comparisons)
    return None


def _holds(operator: str, text: str) -> bool:
    """Returns whether the version of the interface satisfies one comparison."""
    numbers = tuple(map(int, text.split(".")))
    current = API_VERSION[: len(numbers)] if operator in ("==", "!=") else API_VERSION
    version = numbers if operator in ("==", "!=") else (*numbers, 0)[:2]
    return {
        ">=": current >= version,
        "<=": current <= version,
        ">": current > version,
        "<": current < version,
        "==": current == version,
        "!=": current != version,
        "~=": current >= version and current[0] == version[0],
    }[operator]


def import_path(path: str) -> Any:
    """The object at `module:attribute`, or the module itself."""
    module, _, attribute = path.partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, attribute) if attribute else imported


def summary(entry: EntryPoint) -> str:
    """First line of the docstring of a component, or the summary of its package."""
    return next(
        filter(None, [read_doc_line(entry.module, entry.attr), *_metadata(entry, "Summary")]),
        f"of the package {_package(entry)}",
    )


def _metadata(entry: EntryPoint, field: str) -> list[str]:
    """Values of a field of a package's metadata."""
    return [] if entry.dist is None else entry.dist.metadata.get_all(field) or []


def read_doc_line(module: str, attribute: str) -> str:
    """First line of the docstring of an attribute or of its module, read from the source.

    The line is empty if there is no docstring, or no source. Nothing is imported.
    """
    source = _find_source(module)
    try:
        tree = ast.parse(source.read_text(encoding="utf-8")) if source is not None else None
    except (OSError, ValueError, SyntaxError):
        tree = None
    if tree is None:
        return ""
    definitions = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    items = [item for item in tree.body if isinstance(item, definitions)]
    docs = [ast.get_docstring(item) for item in items if item.name == attribute]
    doc = next(filter(None, [*docs, ast.get_docstring(tree)]), "")
    return doc.partition("\n")[0].rstrip(".")


def _find_source(module: str) -> Path | None:
    """The file of a module, found from its top-level package; None: there is no such file."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # imports nothing
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not inner:
        return None if spec.origin is None else Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *inner)
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None
