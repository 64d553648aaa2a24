"""The errors that are a user's to mend: the command line shows them and exits with code 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user typed or supplied: the value, the limit and the fix."""


class NoEffectWarning(UserWarning):
    """A setting that was given does nothing beside another."""


class InputError(UserError):
    """Inputs that a model cannot answer; `problems` has what is wrong by the number of the input.

    Args:
        problems: by number, from 0: a phrase that follows the input's name, or a colon and more.
    """

    def __init__(self, problems: dict[int, str]) -> None:
        self.problems = problems
        first, *others = (self.message_for(number, f"input {number}") for number in problems)
        more = f" (and {len(others)} more inputs have problems)" if others else ""
        super().__init__(first + more)

    def message_for(self, number: int, name: str) -> str:
        """The problem of an input under another name, such as a line of a file."""
        problem = self.problems[number]
        return name + ("" if problem.startswith(":") else " ") + problem

    def __reduce__(self) -> tuple[type[InputError], tuple[dict[int, str]]]:
        return type(self), (self.problems,)


class ConfigError(UserError):
    """One or more settings are wrong; every one of them is in the message and in `problems`."""

    def __init__(self, name: str, problems: list[str]) -> None:
        self.name, self.problems = name, problems
        lines = (
            problems if len(problems) == 1 else ["", *(f"  - {problem}" for problem in problems)]
        )
        super().__init__(f"{name}: " + "\n".join(lines))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, list[str]]]:
        """As another process gets it: the message alone would not make it again."""
        return type(self), (self.name, self.problems)
