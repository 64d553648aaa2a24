"""User errors: the command line shows them and exits with code 2."""

from __future__ import annotations

from miniformer.utils.errors import PluginWarning, UserError

__all__ = [
    "ConfigError",
    "InputError",
    "NoEffectWarning",
    "PluginWarning",
    "RenamedWarning",
    "UserError",
]


class NoEffectWarning(UserWarning):
    """A given setting has no effect in combination with another."""


class RenamedWarning(FutureWarning):
    """A setting was given under its former name."""


class InputError(UserError):
    """Invalid model inputs.

    Args:
        problems: problem by input number, from 0: a phrase that follows the input's name, or a
            colon and more.
    """

    def __init__(self, problems: dict[int, str]) -> None:
        self.problems = problems
        first, *others = (self.message_for(number, f"input {number}") for number in problems)
        more = f" (and {len(others)} more inputs have problems)" if others else ""
        super().__init__(first + more)

    def message_for(self, number: int, name: str) -> str:
        """Message for an input under another name, such as a line of a file."""
        problem = self.problems[number]
        return name + ("" if problem.startswith(":") else " ") + problem

    def __reduce__(self) -> tuple[type[InputError], tuple[dict[int, str]]]:
        return type(self), (self.problems,)


class ConfigError(UserError):
    """One or more invalid settings, all of them in the message and in `problems`."""

    def __init__(self, name: str, problems: list[str]) -> None:
        self.name, self.problems = name, problems
        lines = (
            problems if len(problems) == 1 else ["", *(f"  - {problem}" for problem in problems)]
        )
        super().__init__(f"{name}: " + "\n".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, list[str]]]:
        """Pickles the arguments: the message alone cannot rebuild the error."""
        return type(self), (self.name, self.problems)
