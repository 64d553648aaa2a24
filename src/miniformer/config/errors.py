"""The errors that are a user's to mend: the command line shows them and exits with code 2."""


class UserError(ValueError):
    """A mistake in what the user typed or supplied: the value, the limit and the fix."""


class NoEffectWarning(UserWarning):
    """A setting that was given does nothing beside another."""


class ConfigError(UserError):
    """One or more settings are wrong; every one of them is in the message and in `problems`."""

    def __init__(self, name: str, problems: list[str]) -> None:
        self.problems = problems
        lines = (
            problems if len(problems) == 1 else ["", *(f"  - {problem}" for problem in problems)]
        )
        super().__init__(f"{name}: " + "\n".join(lines))
