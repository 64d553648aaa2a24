"""`miniformer serve`: models over HTTP."""

from __future__ import annotations

from typing import Any

from miniformer.config import UserError
from miniformer.config.command_line import add_config_flags
from miniformer.serving.config import ServeConfig, require_packages

DESCRIPTION = "Serve models over HTTP, with OpenAI's interface and a page for the browser."


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "models", type=str, nargs="+", help="model directories or folders of runs: DIR or NAME=DIR"
    )
    add_config_flags(parser, ServeConfig)


def run(values: dict[str, Any]) -> int:
    """Serves until the process is asked to end; returns the exit code."""
    models = values.pop("models")
    config = ServeConfig.from_dict(values)
    require_packages()
    if not models:
        raise UserError("name a model directory: miniformer serve DIR")
    from miniformer.serving.models import parse_names
    from miniformer.serving.server import serve

    serve(parse_names(models), config)
    return 0
