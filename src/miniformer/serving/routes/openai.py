"""Routes of OpenAI's interface."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from miniformer.generation.api import GenerationInput
from miniformer.serving.errors import ApiError, as_api_error
from miniformer.serving.generation import (
    ClientLeft,
    Delta,
    TokenText,
    encode_prompts,
    generate,
    max_new_tokens,
)
from miniformer.serving.models import ServedModel
from miniformer.serving.routes.answers import (
    Collected,
    chat_logprobs,
    completion_logprobs,
    header,
    usage,
)
from miniformer.serving.routes.bodies import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    Sampling,
    resolve_options,
)
from miniformer.serving.routes.echo import prompt_tokens
from miniformer.serving.routes.logit_bias import logit_bias
from miniformer.serving.routes.schemas import FAILED, STREAMED
from miniformer.serving.state import ServerState, run_call, run_predictions

router = APIRouter(responses=FAILED)


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """All models."""
    models: ServerState = request.app.state.server
    return {"object": "list", "data": [x.describe() for x in models.models.by_name.values()]}


@router.get("/v1/models/{name}")
async def show_model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    state: ServerState = request.app.state.server
    return state.models.get(name).describe()


@router.post("/v1/completions", responses=STREAMED)
async def complete(body: CompletionBody, request: Request) -> Any:
    """Continues prompts; a seq2seq model answers them."""
    state: ServerState = request.app.state.server
    model = state.models.get(body.model)
    for name in ("suffix", "best_of"):
        if getattr(body, name) not in (None, 1 if name == "best_of" else ""):
            raise ApiError(f"{name} is not supported; leave it out", param=name)
    prompts = _prompt_list(body.prompt)
    state.log_prompts(prompts)
    room = body.max_tokens or 1
    inputs = encode_prompts(model, prompts, truncate=body.truncate, room=room)
    asked = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default
    texts = [_echo(model, prompt) if body.echo else "" for prompt in prompts]
    echoed = list[list[TokenText]]()
    if body.echo and body.logprobs is not None:
        echoed = await _echoed_tokens(state, model, request, prompts, inputs, body.logprobs)
    offsets = dict[int, int]()  # characters so far of each choice, for `logprobs`

    def logprobs(index: int, tokens: list[TokenText]) -> dict[str, Any] | None:
        if body.logprobs is None:
            return None
        start = offsets.get(index, 0 if echoed else len(texts[index // body.n]))
        offsets[index] = start + sum(len(token.text) for token in tokens)
        return completion_logprobs(tokens, start)

    def choice(index: int, item: Collected, *, final: bool) -> dict[str, Any]:
        before = echoed[index // body.n] if final and echoed else []
        return {
            "index": index,
            "text": (texts[index // body.n] if final else "") + item.text,
            "logprobs": logprobs(index, before + item.tokens),
            "finish_reason": item.finish_reason,
        }

    def first(index: int) -> dict[str, Any] | None:
        text = texts[index // body.n]
        named = logprobs(index, echoed[index // body.n]) if echoed else None
        opening = {"index": index, "text": text, "logprobs": named, "finish_reason": None}
        return opening if text else None

    answer = _Answer(
        state, model, body, request, inputs, header("text_completion", "cmpl", model.name), choice,
        num_top=body.logprobs, first=first,
    )  # fmt: skip
    return await answer.respond(asked)


@router.post("/v1/chat/completions", responses=STREAMED)
async def chat(body: ChatBody, request: Request) -> Any:
    """Answers the messages of a chat."""
    state: ServerState = request.app.state.server
    model = state.models.get(body.model)
    messages = [{"role": item.role, "content": item.text()} for item in body.messages]
    state.log_prompts([item["content"] for item in messages])
    inputs = state.chat_inputs(model, messages)
    asked = body.max_completion_tokens or body.max_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs=true", param="top_logprobs")
    streamed = body.stream
    kind = "chat.completion.chunk" if streamed else "chat.completion"

    def choice(index: int, item: Collected, *, final: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"content": item.text}
        if final:
            message = {"role": "assistant", "content": item.text, "refusal": None}
        return {
            "index": index,
            "message" if final else "delta": message,
            "logprobs": chat_logprobs(item.tokens) if body.logprobs else None,
            "finish_reason": item.finish_reason,
        }

    answer = _Answer(
        state, model, body, request, inputs, header(kind, "chatcmpl", model.name), choice,
        num_top=(body.top_logprobs or 0) if body.logprobs else None, first=_role_choice,
    )  # fmt: skip
    return await answer.respond(asked)


@router.post("/v1/embeddings")
async def embed(body: EmbeddingBody, request: Request) -> dict[str, Any]:
    """Vectors of texts."""
    state: ServerState = request.app.state.server
    model = state.models.get(body.model)
    if hasattr(model.pipeline.model, "decoder"):
        raise ApiError("a seq2seq model has no vector of a text", param="model")
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts:
        raise ApiError("input is empty; send at least one text", param="input")
    state.log_prompts(texts)
    width = model.pipeline.model.config.d_model
    if body.dimensions is not None and body.dimensions > width:
        raise ApiError(
            f"dimensions={body.dimensions} is above the model's {width}", param="dimensions"
        )
    pipeline = model.pipeline
    vectors: Any = await run_predictions(
        state, model, request, "embed", texts,
        lambda inputs: pipeline.embed(inputs, weight_dtype=state.config.weights).numpy(),
    )  # fmt: skip
    if body.dimensions is not None:
        vectors = vectors[:, : body.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = sum(map(len, pipeline.tokenizer.encode_batch(texts))) if pipeline.tokenizer else 0
    return {
        "object": "list",
        "model": model.name,
        "data": [
            {"object": "embedding", "index": n, "embedding": _encoded(row, body.encoding_format)}
            for n, row in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _encoded(row: np.ndarray, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return row.tolist()


def _prompt_list(prompt: Any) -> list[Any]:
    """Prompts of a request, each a text or token ids."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise ApiError("prompt is empty; send at least one", param="prompt")
    return list(prompt)


def _echo(model: ServedModel, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    text: str = model.pipeline.tokenizer.decode(prompt) if model.pipeline.tokenizer else ""
    return text


async def _echoed_tokens(
    state: ServerState,
    model: ServedModel,
    request: Request,
    prompts: list[Any],
    inputs: list[GenerationInput],
    num_top: int,
) -> list[list[TokenText]]:
    """Tokens of each prompt with their log-probabilities."""
    if hasattr(model.pipeline.model, "decoder"):
        raise ApiError(
            "a seq2seq model gives its source no probability; leave echo or logprobs out",
            param="echo",
        )
    pairs = [*zip(prompts, inputs, strict=True)]
    tokens: list[list[TokenText]] = await run_call(
        state, model, request,
        lambda: [prompt_tokens(model.pipeline, *pair, num_top) for pair in pairs],
    )  # fmt: skip
    return tokens


def _role_choice(index: int) -> dict[str, Any]:
    delta = {"role": "assistant", "content": ""}
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


class _Answer:
    """Answer of a request that generates text, whole or streamed.

    Args:
        state, model, body, request: of the request.
        inputs: prompts.
        head: first fields of the answer.
        choice: makes a choice of collected deltas; `final` is False in a stream.
        num_top: most likely tokens of each step; None: no log-probabilities.
        first: makes the first choice of a stream, by index; None: there is none.
    """

    def __init__(
        self,
        state: ServerState,
        model: ServedModel,
        body: Sampling,
        request: Request,
        inputs: list[GenerationInput],
        head: dict[str, Any],
        choice: Callable[..., dict[str, Any]],
        *,
        num_top: int | None,
        first: Callable[[int], dict[str, Any] | None],
    ) -> None:
        self.state, self.model, self.body, self.request = state, model, body, request
        self.inputs, self.head, self.choice, self.first = inputs, head, choice, first
        self.num_top = num_top
        self.num_choices = len(inputs) * body.n
        state.check_choices(self.num_choices)
        self.prompt_tokens = sum(
            len(item.input_ids if item.source is None else item.source) for item in inputs
        )

    async def respond(self, asked: int | None) -> Any:
        """The response; `asked`: new tokens that the client asks for."""
        count = max_new_tokens(self.model, self.inputs, asked, self.state.config.max_tokens)
        options = resolve_options(
            self.model.pipeline.generation,
            {**self.body.generation_options(), "weight_dtype": self.state.config.weights},
            count,
        )
        if self.body.stream:
            # The first delta comes before the status, so that an error has its own.
            deltas = self._deltas(options, None)
            first = await anext(deltas)
            return StreamingResponse(self._events(first, deltas), media_type="text/event-stream")
        items = [Collected() for _ in range(self.num_choices)]
        async for delta in self._deltas(options, self.request.is_disconnected):
            items[delta.choice].add(delta)
        choices = [self.choice(index, item, final=True) for index, item in enumerate(items)]
        new_tokens = sum(item.num_tokens for item in items)
        return {**self.head, "choices": choices, "usage": usage(self.prompt_tokens, new_tokens)}

    def _deltas(self, options: Any, disconnected: Any) -> AsyncIterator[Delta]:
        bias = logit_bias(self.body.logit_bias, self.model.pipeline.model.config.vocab_size)
        return generate(
            self.model, self.inputs, options, copies=self.body.n, num_top=self.num_top,
            processors=() if bias is None else (bias,), timeout=self.state.config.timeout,
            disconnected=disconnected,
        )  # fmt: skip

    async def _events(self, first: Delta, deltas: AsyncIterator[Delta]) -> AsyncIterator[str]:
        new_tokens = 0
        options = self.body.stream_options
        with_usage = options is not None and options.include_usage
        extra = {"usage": None} if with_usage else {}
        try:
            for index in range(self.num_choices):
                if (choice := self.first(index)) is not None:
                    yield _event({**self.head, "choices": [choice], **extra})
            delta: Delta | None = first
            while delta is not None:
                new_tokens += delta.num_tokens
                item = Collected()
                item.add(delta)
                if delta.text or delta.finish_reason or item.tokens:
                    choice = self.choice(delta.choice, item, final=False)
                    yield _event({**self.head, "choices": [choice], **extra})
                delta = await anext(deltas, None)
            if with_usage:
                used = usage(self.prompt_tokens, new_tokens)
                yield _event({**self.head, "choices": [], "usage": used})
            yield "data: [DONE]\n\n"
        except ClientLeft:
            return
        except Exception as error:  # the status has been sent
            self.state.log_error(error)
            yield _event(as_api_error(error).body())
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
