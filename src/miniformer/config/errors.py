"""The errors that are a user's to mend: the command line shows them and exits with code 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user typed or supplied: the value, the limit and the fix."""


class NoEffectWarning(UserWarning):
    """A setting that was given does nothing beside another."""


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
