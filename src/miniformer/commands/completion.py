"""`miniformer completion`: a script with which a shell completes commands, flags and values."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from typing import Any

from miniformer import registry
from miniformer.config import GenerationConfig, UserError
from miniformer.config.flags.reference import allowed_values
from miniformer.config.flags.subcommands import make_command_parser
from miniformer.train_config import TrainConfig

SHELLS = ("bash", "zsh", "fish")
_BASH = """\
_miniformer() {
  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
  local words="" flags="" values=""
  case "${COMP_WORDS[1]} ${COMP_WORDS[2]}" in
%(cases)s
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="%(commands)s"
  elif [ -n "$values" ]; then
    words="$values"
  elif [ "${current#-}" != "$current" ]; then
    words="$flags"
  elif [ "$COMP_CWORD" -eq 2 ]; then
    case "${COMP_WORDS[1]}" in
%(nested)s
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$current"))
}
complete -o filenames -F _miniformer miniformer
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Args:
        name: with its dashes.
        help: first clause of its help.
        takes_value: a value follows.
        values: allowed values; empty: any, such as a path.
    """

    name: str
    help: str
    takes_value: bool
    values: list[str]


DESCRIPTION = (
    "Print a script that completes commands, flags and values in a shell. For bash: "
    'eval "$(miniformer completion bash)" in ~/.bashrc; for zsh the same in ~/.zshrc; for '
    "fish: miniformer completion fish > ~/.config/fish/completions/miniformer.fish"
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("shell", type=str, help=", ".join(SHELLS))


def run(values: dict[str, Any]) -> int:
    """Prints the script; returns the exit code."""
    shell = values["shell"]
    if shell not in SHELLS:
        raise UserError(registry.unknown_name_message("shell", shell, list(SHELLS)))
    table = flags_by_command()
    print({"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[shell](table), end="")
    return 0


def flags_by_command() -> dict[str, list[Flag]]:
    """Flags of all commands; of a nested one as "data check"."""
    table = {}
    for name, command in registry.load_all("command"):
        parser = make_command_parser(name, command)
        table[name] = list(_flags(parser))
        table |= dict(_nested_flags(parser, name))
    return table


def _nested_flags(parser: Any, prefix: str) -> Iterator[tuple[str, list[Flag]]]:
    for action in parser._actions:
        for name, child in (getattr(action, "_name_parser_map", None) or {}).items():
            yield f"{prefix} {name}", list(_flags(child))
            yield from _nested_flags(child, f"{prefix} {name}")


def _flags(parser: Any) -> Iterator[Flag]:
    fields = {
        field.name: field
        for config in (GenerationConfig, TrainConfig)
        for field in dataclasses.fields(config)
    }
    for action in parser._actions:
        for option in action.option_strings:
            text = str(action.help)
            if not option.startswith("--") or text == "==SUPPRESS==" or option.endswith("+"):
                continue
            field = fields.get(option.removeprefix("--"))
            values = [] if field is None else allowed_values(field)
            if field is not None and field.type == "bool":
                values = ["true", "false"]
            yield Flag(option, re.split(r"[.:;(] |$", text)[0], action.nargs != 0, values)


def bash_script(table: dict[str, list[Flag]]) -> str:
    """Script for bash.

    Args:
        table: flags by command; see `flags_by_command`.
    """
    cases, nested = [], []
    for command, flags in sorted(table.items(), key=lambda item: -len(item[0].split())):
        values = [
            f'      {flag.name}) values="{" ".join(flag.values)}" ;;'
            for flag in flags
            if flag.values
        ]
        choice = ['      case "$previous" in', *(f"  {line}" for line in values), "      esac"]
        pattern = f'"{command}"' if " " in command else f'"{command} "*'
        cases += [
            f"    {pattern})",
            f'      flags="{" ".join(flag.name for flag in flags)}"',
            *(choice if values else []),
            "      ;;",
        ]
    names = [command for command in table if " " not in command]
    for name in names:
        inner = [command.split()[1] for command in table if command.startswith(f"{name} ")]
        if inner:
            nested.append(f'      {name}) words="{" ".join(inner)}" ;;')
    return _BASH % {
        "cases": "\n".join(cases), "commands": " ".join(names), "nested": "\n".join(nested),
    }  # fmt: skip


def zsh_script(table: dict[str, list[Flag]]) -> str:
    """Script for zsh: the function of bash, which zsh can call."""
    return _ZSH + bash_script(table)


def fish_script(table: dict[str, list[Flag]]) -> str:
    """Script for fish, with the help of each flag."""
    lines = []
    for command, flags in table.items():
        first, _, last = command.rpartition(" ")
        condition = f"__fish_seen_subcommand_from {first}" if first else "__fish_use_subcommand"
        lines.append(f"complete -c miniformer -n {shlex.quote(condition)} -f -a {last}")
        for flag in flags:
            argument = "" if not flag.takes_value else " -r"
            if flag.values:
                argument = f" -x -a {shlex.quote(' '.join(flag.values))}"
            seen = shlex.quote(f"__fish_seen_subcommand_from {last}")
            text = flag.help.replace("\\", "\\\\").replace("'", "\\'")
            lines.append(
                f"complete -c miniformer -n {seen} -l {flag.name.removeprefix('--')}{argument} "
                f"-d '{text}'"
            )
    return "\n".join(lines) + "\n"
