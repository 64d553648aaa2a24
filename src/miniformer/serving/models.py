"""Served models by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model
from miniformer.serving.config import ServeConfig
from miniformer.serving.errors import ApiError
from miniformer.serving.metrics import ServerMetrics
from miniformer.serving.scheduling.worker import Worker, generates_text


class ServedModel:
    """A model of the server.

    Args:
        name: name in requests.
        pipeline: the model.
        worker: its thread.
    """

    def __init__(self, name: str, pipeline: Pipeline, worker: Worker) -> None:
        self.name, self.pipeline, self.worker = name, pipeline, worker
        self.created = int(time.time())
        self.generates = generates_text(pipeline)

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.pipeline.task.name

    def describe(self) -> dict[str, object]:
        """The model as /v1/models lists it."""
        config = self.pipeline.model.config
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "miniformer",
            "task": self.task,
            "parameters": sum(x.numel() for x in self.pipeline.model.parameters()),
            "context": config.max_seq_len,
        }


class Models:
    """The models of a server.

    Args:
        models: by name; the first one is the default of requests without a model.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.by_name = dict(models)

    def get(self, name: str | None) -> ServedModel:
        """The model of a request.

        Raises:
            ApiError: no model has the name.
        """
        if name is None:
            return next(iter(self.by_name.values()))
        if name not in self.by_name:
            known = ", ".join(self.by_name)
            raise ApiError(
                f"no model {name!r}; served: {known}", 404, param="model", code="model_not_found"
            )
        return self.by_name[name]


def load_models(
    directories: Mapping[str, str | Path | Pipeline], config: ServeConfig, metrics: ServerMetrics
) -> Models:
    """Loads the models and starts their threads.

    Args:
        directories: model directories, folders of runs or pipelines, by name.
        config: settings of the server.
        metrics: metrics of the server.

    Raises:
        UserError: a directory is no model, or no sequence fits the memory.
    """
    models = {}
    for name, source in directories.items():
        pipeline = source if isinstance(source, Pipeline) else load(resolve_model(str(source)))
        worker = Worker(pipeline, config, metrics.of(name))
        worker.start()
        models[name] = ServedModel(name, pipeline, worker)
    return Models(models)


def parse_names(arguments: list[str]) -> dict[str, str]:
    """Model directories by name, of arguments DIR or NAME=DIR; DIR is named like its folder.

    Raises:
        UserError: two models have one name.
    """
    models: dict[str, str] = {}
    for argument in arguments:
        name, separator, directory = argument.partition("=")
        if not separator or "/" in name:
            directory = argument
            path = Path(argument).resolve()
            name = path.parent.name if path.name in ("best", "last") else path.name
        if name in models:
            raise UserError(f"two models are named {name!r}; name them: NAME={directory}")
        models[name] = directory
    return models
