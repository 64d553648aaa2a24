"""Translations: pieces of texts as they are decoded, or the n best of a beam search."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from miniformer.config import InputError
from miniformer.serving.errors import ApiError, as_api_error
from miniformer.serving.generation import (
    ClientLeft,
    Disconnected,
    encode_prompts,
    generate,
    max_new_tokens,
    wrong_task,
)
from miniformer.serving.models import ServedModel
from miniformer.serving.routes.bodies import resolve_options
from miniformer.serving.state import ServerState, run_call


@dataclasses.dataclass(frozen=True)
class Translation:
    """A request for translations of texts.

    Args:
        state, model, request: of the request.
        texts: the sources.
        truncate: truncate sources that are too long.
        given: decoding options that the request names.
    """

    state: ServerState
    model: ServedModel
    request: Request
    texts: list[str]
    truncate: bool
    given: dict[str, Any]

    @property
    def is_search(self) -> bool:
        """True for a beam search, which knows its texts at its end."""
        return bool(self.given["num_beams"] > 1)

    def deltas(self, disconnected: Disconnected | None) -> AsyncIterator[dict[str, Any]]:
        """Pieces of the translations as they come; see `stream_translations`.

        Args:
            disconnected: see `miniformer.serving.generation.generate`.
        """
        return self._searched() if self.is_search else self._decoded(disconnected)

    async def _decoded(self, disconnected: Disconnected | None) -> AsyncIterator[dict[str, Any]]:
        inputs = encode_prompts(
            self.model, self.texts, truncate=self.truncate, room=1, field="input"
        )
        defaults, config = self.model.pipeline.generation, self.state.config
        asked = self.given.get("max_new_tokens")
        count = max_new_tokens(self.model, inputs, asked, config.max_tokens)
        if asked is None:
            count = min(count, defaults.max_new_tokens)
        options = resolve_options(defaults, {**self.given, "weight_dtype": config.weights}, count)
        async for delta in generate(
            self.model, inputs, options, copies=1, num_top=None, processors=(),
            timeout=config.timeout, disconnected=disconnected,
        ):  # fmt: skip
            if delta.text or delta.finish_reason:
                yield _piece(delta.choice, 0, delta.text, delta.finish_reason)

    async def _searched(self) -> AsyncIterator[dict[str, Any]]:
        for index, text in enumerate(self.texts):
            (result,) = await search_translations(self, [text], first=index)
            for rank, translation in enumerate([result] if isinstance(result, str) else result):
                yield _piece(index, rank, translation, "stop")


async def search_translations(
    translation: Translation, sources: list[Any], *, first: int = 0
) -> list[Any]:
    """Translations of sources by a beam search, as a call: a text each, or a list of the n best.

    Args:
        translation: the request.
        sources: texts, or lists of vectors.
        first: number of the first source in the request.

    Raises:
        ApiError: a source is too long, or no source of this model.
    """
    search = functools.partial(
        translation.model.pipeline.predict_all,
        sources, truncate=translation.truncate, **translation.given,
    )  # fmt: skip
    try:
        results: list[Any] = await run_call(
            translation.state, translation.model, translation.request, search
        )
    except InputError as error:
        problems = {first + number: text for number, text in error.problems.items()}
        raise ApiError(f"input: {InputError(problems)}", param="input") from None
    return results


def _piece(index: int, rank: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "rank": rank, "text": text, "finish_reason": finish_reason}


async def whole_translations(translation: Translation) -> list[str]:
    """The texts of a translation without beams, decoded in slots of the shared batch."""
    texts = [""] * len(translation.texts)
    async for piece in translation.deltas(translation.request.is_disconnected):
        texts[piece["index"]] += piece["text"]
    return texts


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
    if not are_texts(texts):
        raise ApiError("a stream needs texts: a text, or a list of texts", param="input")
    state.check_choices(len(texts) * body.n)
    state.log_prompts(texts)
    deltas = Translation(state, model, request, texts, body.truncate, given).deltas(None)
    first = await anext(deltas)  # before the status, so that an error has its own
    return StreamingResponse(_events(state, first, deltas), media_type="text/event-stream")


def are_texts(values: Any) -> bool:
    """True for a list of texts, at least one."""
    return isinstance(values, list) and bool(values) and all(isinstance(x, str) for x in values)


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
