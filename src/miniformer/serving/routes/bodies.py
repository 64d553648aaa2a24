"""Bodies of OpenAI's requests, and the decoding options that they hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from miniformer.config import ConfigError, GenerationConfig
from miniformer.serving.errors import ApiError
from miniformer.serving.routes.schemas import Body

# Fields of `GenerationConfig` under their own names; the others are fixed by the server, or have a
# name of OpenAI's.
_OWN_FIELDS = (
    *("min_new_tokens", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("stop_token_ids", "bad_words_ids", "regex", "choices", "json_schema"),
)


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False


class Sampling(Body):
    """Fields that completions and chat completions share."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0.0, le=100.0)
    top_p: float | None = Field(None, ge=0.0, le=1.0)
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    # Of this server.
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    min_new_tokens: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0.0)
    no_repeat_ngram_size: int | None = Field(None, ge=1)
    stop_token_ids: list[int] | None = None
    bad_words_ids: list[list[int]] | None = None
    regex: str | None = None
    choices: list[str] | None = None
    json_schema: dict[str, Any] | None = None
    truncate: bool = False

    def generation_options(self) -> dict[str, Any]:
        """The given fields under the names of `GenerationConfig`."""
        names = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
        given = {name: getattr(self, name) for name in (*names, *_OWN_FIELDS)}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        given["stop_strings"] = [item for item in stop or [] if item] or None
        return {name: value for name, value in given.items() if value is not None}


class CompletionBody(Sampling):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None
    suffix: str | None = None


class Message(Body):
    """A message of a chat."""

    role: Literal["system", "user", "assistant", "tool", "developer"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None

    def text(self) -> str:
        """The text of the content.

        Raises:
            ApiError: a part is not text.
        """
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ApiError(
                    f"messages: a part of type {part.get('type')!r} is not supported; use text",
                    param="messages",
                )
        return "".join(part["text"] for part in self.content)


class ResponseFormat(Body):
    """Form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatBody(Sampling):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None

    def generation_options(self) -> dict[str, Any]:
        """See `Sampling.generation_options`; with the schema of `response_format`."""
        options = super().generation_options()
        form = self.response_format
        if form is not None and form.type == "json_object":
            options["json_schema"] = {"type": "object"}
        elif form is not None and form.type == "json_schema":
            schema = (form.json_schema or {}).get("schema")
            if not isinstance(schema, dict):
                raise ApiError(
                    "response_format.json_schema.schema must be a JSON schema",
                    param="response_format",
                )
            options["json_schema"] = schema
        return options


class EmbeddingBody(Body):
    """Body of /v1/embeddings."""

    model: str | None = None
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


def resolve_options(
    defaults: GenerationConfig, given: dict[str, Any], max_new_tokens: int
) -> GenerationConfig:
    """Decoding options of a request.

    Raises:
        ApiError: an option is invalid.
    """
    try:
        return defaults.override(
            {**given, "max_new_tokens": max_new_tokens, "num_return_sequences": 1, "num_beams": 1}
        )
    except ConfigError as error:
        raise ApiError(str(error)) from None
