"""Other spellings of flags: hyphens for underscores, and switches with a value."""

from __future__ import annotations

from typing import Any

from miniformer.config import UserError
from miniformer.config.flags.problems import find_subparser


def normalize_flags(parser: Any, argv: list[str]) -> list[str]:
    """Arguments whose flags are spelled as the parser has them: `--max-steps` is `--max_steps`.

    A flag that the parser does not know in either spelling stays as it is, and so do the arguments
    after `--`.

    Args:
        parser: parser of the command.
        argv: arguments, of a subcommand with its name.
    """
    child, first = find_subparser(parser, argv)
    known = child._option_string_actions
    spellings = {flag.replace("-", "_"): flag for flag in known if flag.startswith("--")}
    result = list(argv)
    for index in range(first, argv.index("--") if "--" in argv else len(argv)):
        flag, equals, value = argv[index].partition("=")
        name, dot, keys = flag.partition(".")  # keys of an object, such as task_config
        if flag.startswith("--") and name not in known:
            name = spellings.get(name.replace("-", "_"), name)
            result[index] = f"{name}{dot}{keys}{equals}{value}"
    return result


def reject_switch_values(parser: Any, argv: list[str]) -> None:
    """Refuses true or false after a switch.

    Raises:
        UserError: a switch is followed by one of them.
    """
    child, first = find_subparser(parser, argv)
    for index in range(first, len(argv)):
        flag, equals, value = argv[index].partition("=")
        action = child._option_string_actions.get(flag)
        given = value if equals else "".join(argv[index + 1 : index + 2])
        if action is not None and action.nargs == 0 and given.lower() in ("true", "false"):
            raise UserError(
                f"{flag} is a switch and takes no value: leave out {given!r}, or leave out both to "
                "turn it off"
            )
