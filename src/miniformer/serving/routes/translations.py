"""Streamed translations: pieces of the text of one, or the n best, each when it is complete."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from miniformer.serving.errors import ApiError, as_api_error
from miniformer.serving.generation import ClientLeft, encode_prompts, generate, wrong_task
from miniformer.serving.models import ServedModel
from miniformer.serving.routes.bodies import resolve_options
from miniformer.serving.state import ServerState, run_call


async def stream_translations(body: Any, request: Request, given: dict[str, Any]) -> Any:
    """Events of a translation; see `TranslateBody`.

    An event has `index`, the number of the source, `rank`, 0 for the best, and `text`. Without
    beams it is a piece of the text, as it is decoded beside other requests; with beams it is a
    whole text, since a beam search knows its texts at its end.

    Args:
        body: body of the request.
        request: the request.
        given: decoding options that it names.
    """
    state: ServerState = request.app.state.server
    model = state.models.get(body.model)
    if model.task != "seq2seq":
        raise wrong_task(model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise ApiError("a stream needs texts: a text, or a list of texts", param="input")
    if len(texts) * body.n > state.config.max_choices:
        raise ApiError(
            f"{len(texts) * body.n} texts are above the server's limit of "
            f"{state.config.max_choices} for a request",
            param="n",
        )
    state.log_prompts(texts)
    is_search = given["num_beams"] > 1
    deltas = (_searched if is_search else _greedy)(state, model, request, body, texts, given)
    first = await anext(deltas)  # before the status, so that an error has its own
    return StreamingResponse(_events(state, first, deltas), media_type="text/event-stream")


async def _greedy(
    state: ServerState,
    model: ServedModel,
    request: Request,
    body: Any,
    texts: list[str],
    given: dict[str, Any],
) -> AsyncIterator[dict[str, Any]]:
    inputs = encode_prompts(model, texts, truncate=body.truncate, room=1)
    defaults = model.pipeline.generation
    count = given.pop("max_new_tokens", defaults.max_new_tokens)
    options = resolve_options(defaults, {**given, "weight_dtype": state.config.weights}, count)
    async for delta in generate(
        model, inputs, options, copies=1, num_top=None, processors=(),
        timeout=state.config.timeout, disconnected=None,
    ):  # fmt: skip
        if delta.text or delta.finish_reason:
            yield {
                "index": delta.choice, "rank": 0, "text": delta.text,
                "finish_reason": delta.finish_reason,
            }  # fmt: skip


async def _searched(
    state: ServerState,
    model: ServedModel,
    request: Request,
    body: Any,
    texts: list[str],
    given: dict[str, Any],
) -> AsyncIterator[dict[str, Any]]:
    pipeline = model.pipeline
    for index, text in enumerate(texts):

        def search(text: str = text) -> Any:
            return pipeline.generate(text, truncate=body.truncate, **given)

        result = await run_call(state, model, request, search)
        for rank, translation in enumerate([result] if isinstance(result, str) else result):
            yield {"index": index, "rank": rank, "text": translation, "finish_reason": "stop"}


async def _events(
    state: ServerState, first: dict[str, Any], deltas: AsyncIterator[dict[str, Any]]
) -> AsyncIterator[str]:
    piece: dict[str, Any] | None = first
    try:
        while piece is not None:
            yield f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"
            piece = await anext(deltas, None)
        yield "data: [DONE]\n\n"
    except ClientLeft:
        return
    except Exception as error:  # the status has been sent
        state.log_error(error)
        yield f"data: {json.dumps(as_api_error(error).body())}\n\n"
    finally:
        await deltas.aclose()  # type: ignore[attr-defined]
