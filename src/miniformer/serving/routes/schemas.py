"""Base class of request bodies: unknown fields are errors that name the nearest field."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from miniformer.serving.errors import unknown_field


class ErrorFields(BaseModel):
    """An error as OpenAI's interface has it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Body of every answer that is an error."""

    error: ErrorFields


# For the OpenAPI document.
FAILED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in (("4XX", "the request cannot be answered"), ("5XX", "the server fails"))
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the answer; with `stream`, its events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


class Body(BaseModel):
    """Body of a request; strict types, no other fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, values: Any) -> Any:
        return check_fields(values, list(cls.model_fields))


def check_fields(values: Any, known: list[str]) -> Any:
    """The values of a body, an object with known fields only.

    Raises:
        ApiError: a field is unknown.
    """
    for name in values if isinstance(values, dict) else ():
        if name not in known:
            raise unknown_field(str(name), known)
    return values
