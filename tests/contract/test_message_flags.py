"""Flags that messages name are flags of the commands that print them."""

import ast
import re
from functools import cache

import pytest

from miniformer import cli, registry
from miniformer.config.flags.problems import find_subparser
from tests.kit import ROOT

SOURCE = ROOT / "src" / "miniformer"
FLAG = re.compile(r"(?<![\w-])--([a-z]\w*(?:-\w+)*)")
COMMAND = re.compile(r"\bminiformer(?:_command\(\)\})? ([a-z-]+)[^;`)]*")
OTHERS = {  # flags of other programs, and of this one before a subcommand
    "nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "help", "version", "print_config",
}  # fmt: skip
NO_COMMAND = {"exporters/onnx/runner", "interop/lm_eval.py", "doctor/__main__.py", "utils/page.py"}


@cache
def flags_of_commands():
    """Flags by the name of their command, those of its subcommands included."""
    return {
        name: flags_of(find_subparser(cli.make_parser(name, command), [name])[0])
        for name, command in (
            (name, registry.get("command", name)) for name in registry.names("command")
        )
    }


def flags_of(parser):
    names = {flag.removeprefix("--") for flag in parser._option_string_actions}
    for action in parser._actions:
        for child in (getattr(action, "_name_parser_map", None) or {}).values():
            names |= flags_of(child)
    return names


@cache
def commands_of_folders():
    """Names of commands by the folder of an extension that has them."""
    result = {}
    for name in registry.names("command"):
        folder = registry.get("command", name).__name__.split(".")[1]
        result.setdefault(folder, []).append(name)
    return {name: result[name] for name in result if name in ("adapters", "compression", "serving")}


def texts(path):
    """Strings of a module that are no docstrings; expressions of an f-string as their code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.Expr)
        for child in ast.walk(node)
        if child is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
            )
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner
        ):
            yield node.value


def unknown_flags(text, folder):
    """Flags of a message that its command lacks: of a command in the text, or of the folder."""
    flags = flags_of_commands()
    unknown, rest = [], text
    for match in COMMAND.finditer(text):
        if match[1] in flags:
            unknown += [(match[1], x) for x in FLAG.findall(match[0]) if x not in flags[match[1]]]
            rest = rest.replace(match[0], "")
    names = commands_of_folders().get(folder, list(flags))
    known = set().union(*(flags[name] for name in names), OTHERS)
    return unknown + [(folder, flag) for flag in FLAG.findall(rest) if flag not in known]


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not any(name.startswith(prefix) for prefix in NO_COMMAND):
            yield pytest.param(path, id=name)


def test_flags_of_messages_are_those_of_a_command():
    unknown = {}
    for parameter in modules():
        (path,) = parameter.values
        folder = path.relative_to(SOURCE).parts[0]
        if unknown_here := [x for text in texts(path) for x in unknown_flags(text, folder)]:
            unknown[parameter.id] = unknown_here
    assert unknown == {}


@pytest.mark.parametrize(
    ("text", "folder", "unknown"),
    [
        ("heal: lower --lr", "compression", ["lr"]),
        ("heal: miniformer train FILE --lr 1e-5; see --steps", "compression", []),
        ("{miniformer_command()} train --resume {folder}", "training", []),
        ("(miniformer prune --remov) or --remove", "compression", ["remov"]),
        ("try --max_stepz", "training", ["max_stepz"]),
        ("`torchrun --nnodes 2`, a--b and --", "training", []),
    ],
)
def test_unknown_flags_are_found(text, folder, unknown):
    assert [flag for _, flag in unknown_flags(text, folder)] == unknown
