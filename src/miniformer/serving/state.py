"""State of the server that routes share."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from fastapi import Request

from miniformer.config import UserError
from miniformer.data.chat import ChatTemplate, read_template
from miniformer.generation.api import GenerationInput
from miniformer.serving.config import ServeConfig
from miniformer.serving.errors import ApiError
from miniformer.serving.generation import ClientLeft, encode_prompts, wrong_task
from miniformer.serving.metrics import ServerMetrics
from miniformer.serving.models import Models, ServedModel
from miniformer.serving.scheduling.jobs import (
    Call,
    Failure,
    Job,
    Mailbox,
    Prediction,
    next_request,
)

logger = logging.getLogger("miniformer.serving")
_POLL_SECONDS = 0.2


@dataclasses.dataclass
class ServerState:
    """Models, settings and metrics of a server.

    Args:
        models, config, metrics: of the server.
        templates: chat template of each model; None: it has none.
    """

    models: Models
    config: ServeConfig
    metrics: ServerMetrics
    templates: dict[str, ChatTemplate | None] = dataclasses.field(default_factory=dict)

    def log_prompts(self, texts: Sequence[Any]) -> None:
        """Logs texts of a request if the settings ask for it."""
        if self.config.log_prompts:
            for text in texts:
                logger.info("prompt: %r", text)

    def check_choices(self, count: int) -> None:
        """Checks the number of texts that a request asks for.

        Raises:
            ApiError: they are more than the settings allow.
        """
        limit = self.config.max_choices
        if count > limit:
            raise ApiError(
                f"{count} texts are above the server's limit of {limit} for a request", param="n"
            )

    def log_error(self, error: Exception) -> None:
        """Logs an error with its traceback, if it is not the client's."""
        if not isinstance(error, UserError | ApiError | TimeoutError):
            logger.error("internal error", exc_info=error)

    def chat_inputs(
        self, model: ServedModel, messages: Sequence[Mapping[str, Any]]
    ) -> list[GenerationInput]:
        """The prompt of a chat.

        Raises:
            ApiError: the model has no template, or refuses the messages.
        """
        if not model.generates:
            raise wrong_task(model)
        template = self.template(model)
        if template is None:
            raise ApiError(
                f"{model.name!r} is a base model without a chat template; use /v1/completions, or "
                "put a chat_template.jinja into its directory",
                param="messages", code="no_chat_template",
            )  # fmt: skip
        pipeline = model.pipeline
        assert pipeline.tokenizer is not None
        try:
            ids = template.encode(messages, pipeline.tokenizer)
        except UserError as error:
            raise ApiError(str(error), param="messages") from None
        if hasattr(pipeline.model, "decoder"):
            text = pipeline.tokenizer.decode(ids)
            return encode_prompts(model, [text], truncate=False, room=1, field="messages")
        return [GenerationInput(ids)]

    def template(self, model: ServedModel) -> ChatTemplate | None:
        """The chat template of a model, read once; None: it has none."""
        if model.name not in self.templates:
            directory, tokenizer = model.pipeline.directory, model.pipeline.tokenizer
            text = None if directory is None else read_template(directory)
            self.templates[model.name] = (
                None
                if text is None or tokenizer is None
                else ChatTemplate.for_tokenizer(text, tokenizer)
            )
        return self.templates[model.name]


async def run_call(
    state: ServerState, model: ServedModel, request: Request, function: Callable[[], Any]
) -> Any:
    """Result of a function that runs in the thread of a model.

    Raises:
        QueueFull, TimeoutError, ClientLeft: see `miniformer.serving.generation.generate`.
        Exception: the error of the function.
    """
    return await _result_of(state, model, request, Call(next_request(), Mailbox(), function))


async def run_predictions(
    state: ServerState,
    model: ServedModel,
    request: Request,
    group: Hashable,
    inputs: Sequence[Any],
    function: Callable[[Sequence[Any]], Any],
) -> Any:
    """Answers to inputs, which may be computed together with those of other requests.

    Args:
        state, model, request: of the request.
        group: requests of a group have the same function and options.
        inputs: the inputs, at least one.
        function: the answers to inputs, in their order.

    Raises:
        QueueFull, TimeoutError, ClientLeft: see `miniformer.serving.generation.generate`.
        Exception: the error of the function for these inputs.
    """
    job = Prediction(next_request(), Mailbox(), group, inputs, function)
    answers: Sequence[Any] = await _result_of(state, model, request, job)
    return answers


async def _result_of(state: ServerState, model: ServedModel, request: Request, job: Job) -> Any:
    model.worker.submit([job])
    end = time.monotonic() + state.config.timeout
    try:
        while True:
            remaining = end - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            try:
                ((_, event),) = await job.mailbox.take(min(remaining, _POLL_SECONDS))
            except TimeoutError:
                if await request.is_disconnected():
                    raise ClientLeft from None
                continue
            if isinstance(event, Failure):
                raise event.error
            return event.value
    finally:
        job.cancel()
