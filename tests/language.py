"""Check of names, docstrings, comments and messages of the code against the field's language.

    python -m tests.language [PATH ...]

Prints `file:line: reason` for each offense and returns 1 if there is any.
"""

import ast
import io
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [ROOT / name for name in ("src", "tests", "benchmarks")]
# Files that list the words.
EXEMPT = [ROOT / "tests" / "language.py", ROOT / "tests" / "contract" / "test_language.py"]

# Identifiers that say nothing about their value, or that the field calls otherwise.
NAMES = frozenset(
    (
        "ahead",
        "began",
        "begun",
        "beside",
        "cutter",
        "each",
        "figures",
        "found",
        "guess",
        "guesses",
        "kept",
        "learnt",
        "made",
        "other",
        "pieces",
        "place",
        "places",
        "pool",
        "pools",
        "said",
        "say",
        "shares",
        "some",
        "tally",
        "tell",
        "tells",
        "told",
        "until",
        "wanted",
        "whole",
        "words",
    )
)
OPENINGS = frozenset(
    ("What", "Whether", "Where", "How", "When", "Which", "Who", "Whatever", "Whose")
)
# Words and phrases, in docstrings, comments and messages; each with what to write.
PHRASES = {
    r"figures?": "metric",
    r"tells?|told": "print, report, log",
    r"begun": "decoding state",
    r"tally": "statistics",
    r"cutter": "batcher",
    r"learnt": "learned",
    r"goes on|go on|going on|went on": "continue, resume",
    r"not to be had|can be had": "not available",
    r"nothing is wrong": "no problems found",
    r"the house|manners|foretell\w*|foretold": "plain words",
    r"optimiser\w*|modelling|colours?|neighbours?|favour\w*|behaviour"
    r"|(?:normal|synchron|quant|initial|standard|summar|recogn|token)is(?:e[drs]?|ing|ation)\b": (
        "American spelling"
    ),
}
PATTERNS = [
    (re.compile(rf"(?<![\w.`</])(?:{phrase})(?![\w`])", re.IGNORECASE), better)
    for phrase, better in PHRASES.items()
]


def offenses(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and reasons of a file."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for line, name in _names(tree):
        if name.strip("_") in NAMES:
            yield line, f"name {name!r} says nothing, or the field has another word"
    if path.stem in NAMES:
        yield 1, f"name of a module: {path.stem!r}"
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and text.split()[0].strip(",:") in OPENINGS:
            line = node.body[0].lineno
            yield line, f"docstring begins with {text.split()[0]!r}; begin with a noun or a verb"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from _phrases(node.lineno, node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _phrases(token.start[0], token.string)


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that a file defines: functions, classes, parameters, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def _phrases(line: int, text: str) -> Iterator[tuple[int, str]]:
    for pattern, better in PATTERNS:
        for match in pattern.finditer(text):
            number = line + text.count("\n", 0, match.start())
            yield number, f"{match.group()!r}; write: {better}"


def main(arguments: list[str]) -> int:
    """Prints all offenses; returns the exit code."""
    roots = [Path(argument).resolve() for argument in arguments] or FOLDERS
    count = 0
    for root in roots:
        for path in sorted(root.rglob("*.py") if root.is_dir() else [root]):
            if path in EXEMPT:
                continue
            for line, reason in sorted(set(offenses(path))):
                print(f"{os.path.relpath(path)}:{line}: {reason}")
                count += 1
    print(f"{count} offenses")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
