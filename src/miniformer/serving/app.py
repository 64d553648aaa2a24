"""The application: routes, errors, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from miniformer import __version__
from miniformer.serving.config import ServeConfig
from miniformer.serving.errors import add_error_handlers
from miniformer.serving.generation import ClientLeft
from miniformer.serving.guard import Guard, read_keys
from miniformer.serving.metrics import ServerMetrics
from miniformer.serving.models import Models
from miniformer.serving.routes import openai as openai_routes
from miniformer.serving.routes import tasks as task_routes
from miniformer.serving.state import ServerState
from miniformer.utils.units import parse_bytes

_PAGE = Path(__file__).parent / "page" / "index.html"


def make_app(models: Models, config: ServeConfig, metrics: ServerMetrics) -> FastAPI:
    """Makes the application.

    Args:
        models, config, metrics: of the server.

    Raises:
        UserError: the file of keys is invalid.
    """
    keys = [] if config.api_key_file is None else read_keys(config.api_key_file)
    app = FastAPI(title="Miniformer", version=__version__, redoc_url=None)
    app.state.server = state = ServerState(models, config, metrics)
    add_error_handlers(app)
    app.include_router(openai_routes.router)
    app.include_router(task_routes.router)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        dead = [name for name, item in models.by_name.items() if not item.worker.is_alive]
        if dead:
            return JSONResponse({"status": "failed", "models": dead}, 503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # the connection is closed

    @app.exception_handler(TimeoutError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        from miniformer.serving.errors import as_api_error

        state.log_error(error)
        api_error = as_api_error(error)
        return JSONResponse(api_error.body(), api_error.status, headers=api_error.headers)

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        for path in document["paths"].values():
            for operation in path.values():  # invalid requests have status 400 here
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    if config.cors is not None:
        app.add_middleware(
            CORSMiddleware, allow_origins=[config.cors], allow_methods=["*"], allow_headers=["*"]
        )
    max_body: Any = parse_bytes(config.max_body)
    app.add_middleware(Guard, keys=keys, max_body=max_body, metrics=metrics)
    return app
