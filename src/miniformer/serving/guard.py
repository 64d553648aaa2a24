"""Limits of requests before their routes: key, size of the body, slow senders."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.serving.errors import ApiError
from miniformer.serving.metrics import ServerMetrics

_OPEN_PATHS = ("/health", "/ready")
_BODY_SECONDS = 30.0  # for the whole body
_DRAINED_BYTES = 100_000_000  # of a body above the limit


def read_keys(path: str) -> list[str]:
    """The keys of a file, one in each line.

    Raises:
        UserError: the file cannot be read, or has no key.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"api_key_file: {path}: {error}") from None
    if not lines:
        raise UserError(f"api_key_file: {path}: has no key")
    return lines


class Guard:
    """ASGI middleware that refuses requests without a key and bodies that are too large.

    Args:
        app: the application.
        keys: accepted keys; empty: none is required.
        max_body: bytes of a body.
        metrics: counts all requests.
    """

    def __init__(
        self, app: Any, *, keys: Sequence[str], max_body: int, metrics: ServerMetrics
    ) -> None:
        self.app, self.max_body, self.metrics = app, max_body, metrics
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # the client leaves before there is a status

        async def count_and_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check_key(scope)
                receive = await self._read_body(scope, receive)
            except ApiError as error:
                await _send_error(error, count_and_send)
                return
            await self.app(scope, receive, count_and_send)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()

    def _check_key(self, scope: Any) -> None:
        if not self.keys or scope["path"] in _OPEN_PATHS:
            return
        headers = dict(scope["headers"])
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        # All keys are compared, in constant time, so that the time is the same for all.
        matches = [hmac.compare_digest(key.strip(), own) for own in self.keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError(
                "a valid API key is required: Authorization: Bearer KEY", 401,
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def _read_body(self, scope: Any, receive: Any) -> Any:
        """A `receive` that gives the body, which is read before the route runs."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        size, limit = int(length) if length.isdigit() else 0, self.max_body
        if size > _DRAINED_BYTES:
            raise self._too_large()
        body, more = bytearray(), scope["method"] in ("POST", "PUT", "PATCH")
        drained = 0  # bytes that are read and dropped, so that the client reads the answer
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size = max(size, len(body) + len(part))
                    if size <= limit:
                        body += part
                    elif (drained := drained + len(part)) > _DRAINED_BYTES:
                        break
        except TimeoutError:
            raise ApiError(f"the body did not arrive within {_BODY_SECONDS:g} s", 408) from None
        if size > limit:
            raise self._too_large()
        message = {"type": "http.request", "body": bytes(body), "more_body": False}
        messages = [message]

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        return replay

    def _too_large(self) -> ApiError:
        return ApiError(f"the body is above the server's limit of {self.max_body:,} bytes", 413)


async def _send_error(error: ApiError, send: Any) -> None:
    content = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "connection": "close", **(error.headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
