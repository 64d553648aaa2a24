"""Errors of requests as OpenAI's interface has them."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from miniformer.config import UserError
from miniformer.serving.scheduling.worker import QueueFull


class ApiError(Exception):
    """Error that the client gets.

    Args:
        message: message with the value, the limit and the fix.
        status: HTTP status.
        param: field of the request.
        code: short name of the error.
        headers: of the response.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def body(self) -> dict[str, Any]:
        """The response, as OpenAI's."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def as_api_error(error: Exception) -> ApiError:
    """The error that the client gets for an exception of a request or of the worker."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(
            "the queue is full; try again later", 429, code="queue_full",
            headers={"Retry-After": "1"},
        )  # fmt: skip
    if isinstance(error, asyncio.TimeoutError):
        return ApiError("the request took longer than the timeout of the server", 504)
    if isinstance(error, UserError):
        if "not finite" in str(error) or "NaN" in str(error):
            return ApiError(str(error), 500, code="model_error")
        if "shutting down" in str(error):
            return ApiError(str(error), 503, code="shutting_down")
        return ApiError(str(error))
    return ApiError("internal error; the log of the server has the cause", 500)


def unknown_field(name: str, known: Sequence[str], param: str | None = None) -> ApiError:
    """Error for a field that does not exist; names the nearest one."""
    nearest = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else f"; known: {', '.join(sorted(known))}"
    return ApiError(f"unknown field {name!r}{hint}", param=param or name, code="unknown_parameter")


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of the app a body of OpenAI's form."""

    @app.exception_handler(ApiError)
    @app.exception_handler(QueueFull)
    @app.exception_handler(UserError)
    async def known(request: Request, error: Exception) -> JSONResponse:
        api_error = as_api_error(error)
        return JSONResponse(api_error.body(), api_error.status, headers=api_error.headers)

    @app.exception_handler(HTTPException)
    async def status(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(ApiError(message, error.status_code).body(), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part != "body"]
        name = ".".join(path) or None
        if first["type"] == "extra_forbidden":
            api_error = unknown_field(path[-1], first.get("ctx", {}).get("known", ()), name)
        elif first["type"] == "json_invalid":
            api_error = ApiError(f"the body is not JSON: {first['ctx']['error']}")
        else:
            api_error = ApiError(f"{name or 'body'}: {first['msg']}", param=name)
        return JSONResponse(api_error.body(), 400)
