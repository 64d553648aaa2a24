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

# Operators of one kind replace each other: others end in an error at once, as `0.5 << 2` does.
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
        line: the lines that are changed, stripped.
        mutation: what takes their place.
        source: the whole module after the change.
    """

    path: Path
    line: str
    mutation: str
    source: str


def sample(path: Path, count: int, seed: int) -> list[Mutant]:
    """At most `count` mutants of a module, each at another place.

    Places are drawn by a hash of their line, not of their number: a change elsewhere in the file,
    or another name of it, leaves the sample as it is.
    """
    source = path.read_text(encoding="utf-8")
    lines, skipped = source.splitlines(), _ineffective(source)
    places: dict[Position, list[tuple[str, int]]] = defaultdict(list)
    for start, name, occurrence in _all(source):
        if not any(first <= start < last for first, last in skipped):
            places[start].append((name, occurrence))
    drawn, seen = [], defaultdict(int)
    for start in sorted(places):
        text = lines[start[0] - 1].strip()
        seen[text] += 1  # which place of such lines
        drawn.append((_hash(seed, text, seen[text]), start))
    found = []
    for order, start in sorted(drawn):
        if len(found) == count:
            break
        options = places[start]
        name, occurrence = options[int(order, 16) % len(options)]
        changed = mutate_code(source, get_operator(name)(), occurrence)
        if changed is not None and _differs(source, changed):
            found.append(Mutant(path, *_difference(source, changed), changed))
    return found


def _all(source: str) -> Iterator[tuple[Position, str, int]]:
    """Start, operator and number of each mutation that there is."""
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
    """Where a change cannot matter: annotations, and what only a type checker reads."""
    found = []

    def skip(node: ast.AST | None) -> None:
        if node is not None:
            # Columns of ast are bytes of UTF-8, those of parso characters: whole lines differ in
            # few files, and only what stands after a non-ASCII character of a line.
            found.append(((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            skip(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            skip(node.returns)
            if any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list):
                first = node.decorator_list[0].lineno
                found.append(((first, 0), (node.end_lineno, node.end_col_offset)))
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skip(node)
    return found


def _differs(source: str, changed: str) -> bool:
    """False for what is no Python, or the same Python written in another way."""
    try:
        return _meaning(source) != _meaning(changed)
    except SyntaxError:
        return False


def _meaning(source: str) -> str:
    """What a source does, whether arguments are given by position or by name.

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
