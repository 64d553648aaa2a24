"""The sample of mutants of a module."""

import ast
import dataclasses
import difflib
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

# Operators of one kind replace each other; others fail at once, such as `0.5 << 2`.
_KINDS = (
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"},
    {"BitAnd", "BitOr", "BitXor", "LShift", "RShift"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
)
Position = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        line: the changed lines, stripped.
        mutation: their replacement.
        source: the module after the change.
    """

    path: Path
    line: str
    mutation: str
    source: str


def sample(path: Path, count: int, seed: int) -> list[Mutant]:
    """At most `count` mutants of a module, each at another position.

    Positions are drawn by a hash of their line, not of its number: a change elsewhere in the file,
    or a new name of the file, does not change the sample.
    """
    source = path.read_text(encoding="utf-8")
    lines, skipped = source.splitlines(), _ineffective(source)
    positions: dict[Position, list[tuple[str, int]]] = defaultdict(list)
    for start, name, occurrence in _all(source):
        if not any(first <= start < last for first, last in skipped):
            positions[start].append((name, occurrence))
    drawn, seen = [], defaultdict(int)
    for start in sorted(positions):
        text = lines[start[0] - 1].strip()
        seen[text] += 1  # index among equal lines
        drawn.append((_hash(seed, text, seen[text]), start))
    mutants = []
    for order, start in sorted(drawn):
        if len(mutants) == count:
            break
        options = positions[start]
        name, occurrence = options[int(order, 16) % len(options)]
        changed = mutate_code(source, get_operator(name)(), occurrence)
        if changed is not None and _differs(source, changed):
            mutants.append(Mutant(path, *_difference(source, changed), changed))
    return mutants


def _all(source: str) -> Iterator[tuple[Position, str, int]]:
    """Start, operator and occurrence of every possible mutation."""
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        kind = get_operator(name)
        if kind.arguments() or not _of_one_kind(name):
            continue
        operator, occurrence = kind(), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                yield start, name, occurrence
                occurrence += 1


def _of_one_kind(name: str) -> bool:
    operator, *pair = name.removeprefix("core/").split("_")
    if operator not in ("ReplaceBinaryOperator", "ReplaceComparisonOperator"):
        return operator != "NoOp"
    return any(kind.issuperset(pair) for kind in _KINDS)


def _ineffective(source: str) -> list[tuple[Position, Position]]:
    """Ranges in which a change has no effect: annotations, and code for type checkers only."""
    ranges = []

    def skip(node: ast.AST | None) -> None:
        if node is not None:
            # Columns are UTF-8 bytes in ast and characters in parso: they differ after a non-ASCII
            # character of a line.
            ranges.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            skip(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skip(node.returns)
            if any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list):
                first = node.decorator_list[0].lineno
                ranges.append(((first, 0), (node.end_lineno, node.end_col_offset)))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skip(node)
    return ranges


def _differs(source: str, changed: str) -> bool:
    """Returns False for a syntax error, and for the same code in another notation."""
    try:
        return _meaning(source) != _meaning(changed)
    except SyntaxError:
        return False


def _meaning(source: str) -> str:
    """The syntax tree of a source, without the kinds of parameters.

    The `*` of `f(x, *, y)` is an operator to cosmic-ray, which makes it `f(x, /, y)`.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults = [*node.defaults, *filter(None, node.kw_defaults)]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
    return ast.dump(tree)


def _difference(source: str, changed: str) -> tuple[str, str]:
    before, after = [], []
    for line in difflib.ndiff(source.splitlines(), changed.splitlines()):
        if line.startswith("- "):
            before.append(line[2:].strip())
        elif line.startswith("+ "):
            after.append(line[2:].strip())
    return "\n".join(filter(None, before)), "\n".join(filter(None, after))


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
