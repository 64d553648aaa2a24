"""Routes of the tasks that OpenAI's interface does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from miniformer.config import InputError, UserError
from miniformer.serving.errors import ApiError
from miniformer.serving.generation import wrong_task
from miniformer.serving.models import ServedModel
from miniformer.serving.routes.attention import source_attention
from miniformer.serving.routes.schemas import FAILED, STREAMED, Body
from miniformer.serving.routes.translations import (
    Translation,
    are_texts,
    search_translations,
    stream_translations,
    whole_translations,
)
from miniformer.serving.state import ServerState, run_call, run_predictions

router = APIRouter(responses=FAILED)
_CLASSIFIERS = (
    *("classification", "multilabel_classification", "ordinal_regression"),
    "token_classification",
)


class InputBody(Body):
    """Body of /v1/classify, /v1/regress and /v1/fill."""

    model: str | None = None
    input: Any
    truncate: bool = False


class TranslateBody(InputBody):
    """Body of /v1/translate."""

    num_beams: int = Field(1, ge=1, le=32)
    n: int = Field(1, ge=1, le=32)
    length_penalty: float | None = None
    max_tokens: int | None = Field(None, ge=1)
    attention: bool = False
    stream: bool = False


class ScoreBody(Body):
    """Body of /v1/score."""

    model: str | None = None
    text: str | list[str]
    prompt: str | list[str] | None = None


class TokenizeBody(Body):
    """Body of /tokenize."""

    model: str | None = None
    text: str


class DetokenizeBody(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]


@router.post("/v1/classify")
async def classify(body: InputBody, request: Request) -> dict[str, Any]:
    """Classes of inputs."""
    return await _predict(body, request, _CLASSIFIERS)


@router.post("/v1/regress")
async def regress(body: InputBody, request: Request) -> dict[str, Any]:
    """Numbers for inputs."""
    return await _predict(body, request, ("regression",))


@router.post("/v1/fill")
async def fill(body: InputBody, request: Request) -> dict[str, Any]:
    """Tokens for the masks of texts."""
    return await _predict(body, request, ("masked_lm",))


@router.post("/v1/translate", responses=STREAMED)
async def translate(body: TranslateBody, request: Request) -> Any:
    """Targets of sources, with beam search."""
    given = {"max_new_tokens": body.max_tokens, "length_penalty": body.length_penalty}
    options: dict[str, Any] = {name: x for name, x in given.items() if x is not None}
    options |= {"num_return_sequences": body.n, "num_beams": max(body.num_beams, body.n)}
    if body.stream:
        if body.attention:
            raise ApiError("attention is not streamed; leave it or stream out", param="attention")
        return await stream_translations(body, request, options)
    answer = await _translate(body, request, options)
    if body.attention and isinstance(body.input, str):
        state: ServerState = request.app.state.server
        model, (best,) = state.models.get(body.model), answer["predictions"][:1]
        target, pipeline = best if isinstance(best, str) else best[0], model.pipeline
        answer["attention"] = await run_call(
            state, model, request, lambda: source_attention(pipeline, body.input, target)
        )
    return answer


async def _translate(
    body: TranslateBody, request: Request, options: dict[str, Any]
) -> dict[str, Any]:
    """Whole translations: in slots of the shared batch, or a beam search as a call."""
    state: ServerState = request.app.state.server
    model = _model_of(body, request, ("seq2seq",))
    value, task = body.input, model.pipeline.task
    sources = [value] if isinstance(value, str) or task.is_single_input(value) else value
    state.check_choices(len(sources) * body.n)
    translation = Translation(state, model, request, sources, body.truncate, options)
    if options["num_beams"] == 1 and are_texts(sources):
        results: list[Any] = await whole_translations(translation)
    else:
        results = await search_translations(translation, sources)
    return {"model": model.name, "predictions": results}


async def _predict(body: InputBody, request: Request, tasks: Sequence[str]) -> dict[str, Any]:
    """Predictions of the pipeline for inputs."""
    model = _model_of(body, request, tasks)
    pipeline, truncate = model.pipeline, body.truncate
    weights = request.app.state.server.config.weights
    is_single = pipeline.task.is_single_input(body.input)
    inputs = [body.input] if is_single else body.input
    group = ("predict", truncate, type(inputs[0]))
    try:
        results = await run_predictions(
            request.app.state.server, model, request, group, inputs,
            lambda items: pipeline.predict_all(items, truncate=truncate, weight_dtype=weights),
        )  # fmt: skip
    except InputError as error:
        raise ApiError(f"input: {error}", param="input") from None
    return {"model": model.name, "predictions": [*results]}


def _model_of(body: InputBody, request: Request, tasks: Sequence[str]) -> ServedModel:
    """The model of a request; checks its task and the kind of its input."""
    state: ServerState = request.app.state.server
    model = state.models.get(body.model)
    if model.task not in tasks:
        raise wrong_task(model)
    if not isinstance(body.input, str | list) or body.input == []:
        raise ApiError("input must be a text, or a list of inputs", param="input")
    state.log_prompts([body.input])
    return model


@router.post("/v1/score")
async def score(body: ScoreBody, request: Request) -> dict[str, Any]:
    """Log-probabilities of the tokens of texts."""
    state: ServerState = request.app.state.server
    model = state.models.get(body.model)
    if not model.generates:
        raise wrong_task(model)
    texts = [body.text] if isinstance(body.text, str) else body.text
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    state.log_prompts(texts)
    prompts = [""] * len(texts) if prompts is None else prompts
    if not texts:
        raise ApiError("text is empty; send at least one text", param="text")
    if len(prompts) != len(texts):
        raise ApiError(
            f"{len(texts)} texts need as many prompts, not {len(prompts)}", param="prompt"
        )
    pipeline = model.pipeline

    def scores(pairs: Sequence[Any]) -> Sequence[Any]:
        return pipeline.score([text for text, _ in pairs], [prompt for _, prompt in pairs])

    try:
        pairs = [*zip(texts, prompts, strict=True)]
        results = await run_predictions(state, model, request, "score", pairs, scores)
    except UserError as error:
        raise ApiError(str(error)) from None
    return {
        "model": model.name,
        "scores": [
            {"tokens": item.tokens, "logprobs": item.logprobs, "total": item.total_logprob}
            for item in results
        ],
    }


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """Token ids of a text, without those that a task adds."""
    tokenizer = _tokenizer(request, body.model)
    ids = tokenizer.encode(body.text)
    return {"tokens": ids, "count": len(ids)}


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
    """The text of token ids."""
    tokenizer = _tokenizer(request, body.model)
    if bad := [token for token in body.tokens if not 0 <= token < tokenizer.vocab_size]:
        raise ApiError(
            f"token id {bad[0]} is not from 0 to {tokenizer.vocab_size - 1}", param="tokens"
        )
    return {"text": tokenizer.decode(body.tokens)}


def _tokenizer(request: Request, name: str | None) -> Any:
    state: ServerState = request.app.state.server
    model: ServedModel = state.models.get(name)
    if model.pipeline.tokenizer is None:
        raise ApiError(f"{model.name!r} reads no text and has no tokenizer", param="model")
    return model.pipeline.tokenizer
