"""`miniformer.serve`: runs the server."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.serving.config import ServeConfig, require_packages

_KEEP_ALIVE_SECONDS = 75  # longer than a proxy keeps idle connections, which it may use until then
_STOP_SECONDS = 10.0  # for running requests after SIGTERM
_SWITCH_SECONDS = 0.0005  # a worker whose step is done waits for the event loop no longer than this


def serve(models: Any, config: ServeConfig | None = None, **settings: Any) -> None:
    """Serves models over HTTP until the process is asked to end.

    Args:
        models: a model directory, a `Pipeline`, or several by name.
        config: settings; None: those of `settings`.
        **settings: fields of `ServeConfig`.

    Raises:
        UserError: a package is missing, a directory is no model, or the port is taken.
    """
    require_packages()
    config = ServeConfig.from_dict(settings) if config is None else config
    named = models if isinstance(models, Mapping) else {_name_of(models): models}
    with contextlib.closing(_listen(config)) as listener:
        _serve(named, config, listener)


def _serve(named: Mapping[str, Any], config: ServeConfig, listener: socket.socket) -> None:
    """Serves models by name on a bound socket."""
    import torch
    import uvicorn

    from miniformer.serving.app import make_app
    from miniformer.serving.metrics import ServerMetrics
    from miniformer.serving.models import load_models

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    sys.setswitchinterval(_SWITCH_SECONDS)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    metrics = ServerMetrics()
    loaded = load_models(named, config, metrics)
    try:
        app = make_app(loaded, config, metrics)
        for item in loaded.by_name.values():
            slots = f", {item.worker.num_slots} slots" if item.generates else ""
            print(f"{item.name}: {item.task}{slots}", flush=True)
        host, port = listener.getsockname()[:2]
        print(f"serving on http://{host}:{port}; Ctrl-C ends it", flush=True)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=int(_STOP_SECONDS),
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=64 * 1024,
        )
        _run_until_asked_to_end(settings, listener)
        print("serving has ended", flush=True)
    finally:
        for item in loaded.by_name.values():
            item.worker.stop(_STOP_SECONDS / 2)


def _run_until_asked_to_end(settings: Any, listener: socket.socket) -> None:
    """Runs the server of a `uvicorn.Config`."""
    import uvicorn

    with contextlib.suppress(KeyboardInterrupt):  # raised again after Ctrl-C has ended the server
        uvicorn.Server(settings).run(sockets=[listener])


def _name_of(model: Any) -> str:
    if isinstance(model, str | Path):
        from miniformer.serving.models import parse_names

        return next(iter(parse_names([str(model)])))
    return "model"


def _listen(config: ServeConfig) -> socket.socket:
    """A bound socket.

    Raises:
        UserError: the address is taken or invalid.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"host={config.host}, port={config.port}: {error.strerror or error}; choose another "
            "port, or 0 for a free one"
        ) from None
    return listener
