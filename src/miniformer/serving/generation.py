"""Generation for a request: sequences of the worker as deltas of text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

from miniformer.config import GenerationConfig, InputError, UserError
from miniformer.generation.api import GenerationInput
from miniformer.generation.detokenizer import StopStringChecker, StreamingDetokenizer
from miniformer.generation.logits_processors import Processor
from miniformer.serving.errors import ApiError
from miniformer.serving.models import ServedModel
from miniformer.serving.scheduling.jobs import (
    Failure,
    Job,
    Mailbox,
    Sequence,
    Token,
    Tokens,
    next_request,
)
from miniformer.tasks.common.text_generation import make_constraints, token_options

_POLL_SECONDS = 0.2  # between checks whether the client has left
Disconnected = Callable[[], Awaitable[bool]]


class ClientLeft(Exception):
    """The client closed the connection."""


@dataclasses.dataclass(frozen=True)
class TokenText:
    """A generated token.

    Args:
        token: its id.
        text: its own text.
        logprob: log-probability, in nats; None: it begins the text.
        top: the most likely tokens: text, id and log-probability.
    """

    token: int
    text: str
    logprob: float | None
    top: list[tuple[str, int, float]]


@dataclasses.dataclass(frozen=True)
class Delta:
    """New text of a choice.

    Args:
        choice: index of the choice.
        text: stable text since the last delta.
        num_tokens: its tokens, EOS included.
        tokens: the tokens without EOS, if log-probabilities are asked for.
        finish_reason: stop or length; None: more text follows.
    """

    choice: int
    text: str
    num_tokens: int
    tokens: list[TokenText]
    finish_reason: str | None


class _Choice:
    """State of a choice in the event loop."""

    def __init__(
        self, index: int, tokenizer: Any, options: GenerationConfig, with_logprobs: bool
    ) -> None:
        self.index, self.tokenizer, self.options = index, tokenizer, options
        self.with_logprobs = with_logprobs
        self.detokenizer = StreamingDetokenizer(
            tokenizer.decode, options.stop_strings or [], tokenizer.stable_length
        )

    def add(self, tokens: list[Token]) -> Delta:
        """The delta of tokens."""
        finished, is_eos = tokens[-1].finished, tokens[-1].token in self.options.eos_token_ids
        real = tokens[:-1] if is_eos else tokens
        text, reason = "", None
        if len(real) > 1 and finished:  # a whole answer needs no text of its beginning
            self.detokenizer.tokens += [item.token for item in real]
        else:
            text = "".join(self.detokenizer.add_token(item.token) for item in real)
        if finished:
            text += self.detokenizer.flush()
            reason = "stop" if is_eos or self.detokenizer.finished else "length"
        named = [self._token_text(item) for item in real] if self.with_logprobs else []
        return Delta(self.index, text, len(tokens), named, reason)

    def _token_text(self, token: Token) -> TokenText:
        top = [(token_name(self.tokenizer, item), item, value) for item, value in token.top]
        name = token_name(self.tokenizer, token.token)
        return TokenText(token.token, name, token.logprob, top)


def token_name(tokenizer: Any, token: int) -> str:
    """The text of a token alone; of bytes that are no whole characters, `bytes:\\xe7\\x8c`."""
    text: str = tokenizer.decode([token])
    if "\ufffd" not in text:
        return text
    names, _ = tokenizer.token_bytes()
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in names[token])


def max_new_tokens(
    model: ServedModel, inputs: SequenceOf[GenerationInput], asked: int | None, limit: int | None
) -> int:
    """New tokens of each sequence: as asked, at most the limit and the rest of the context.

    The decoder of a seq2seq model begins with its start token, and not with the source.

    Raises:
        ApiError: a prompt leaves no room for `asked` tokens, or for one.
    """
    context = model.pipeline.model.config.max_seq_len
    longest = max(len(item.input_ids) for item in inputs)
    room = context - longest
    if room < (asked or 1) and inputs[0].source is not None:
        raise ApiError(
            f"max_tokens={asked or 1} is above the {room} tokens of a target; lower it",
            param="max_tokens", code="context_length_exceeded",
        )  # fmt: skip
    if room < (asked or 1):
        raise ApiError(
            f"a prompt of {longest} tokens and max_tokens={asked or 1} exceed the context of "
            f"{context} tokens; shorten the prompt or max_tokens",
            param="max_tokens" if asked else "prompt",
            code="context_length_exceeded",
        )
    if limit is not None and asked is not None and asked > limit:
        raise ApiError(
            f"max_tokens={asked} is above the server's limit of {limit}", param="max_tokens"
        )
    return min(room if asked is None else asked, limit or room)


async def generate(
    model: ServedModel,
    inputs: SequenceOf[GenerationInput],
    options: GenerationConfig,
    *,
    copies: int,
    num_top: int | None,
    processors: tuple[Processor, ...],
    timeout: float,
    disconnected: Disconnected | None,
) -> AsyncIterator[Delta]:
    """Generates `copies` continuations of each prompt; yields deltas as they come.

    However the iteration ends, sequences that are left are cancelled.

    Args:
        model: the model.
        inputs: prompts.
        options: decoding options.
        copies: continuations of each prompt.
        num_top: most likely tokens of each step; None: no log-probabilities either.
        processors: further logits processors.
        timeout: seconds for all of it.
        disconnected: returns True once the client has left; None: the response is cancelled then.

    Raises:
        ApiError, UserError, QueueFull, TimeoutError, ClientLeft: the request cannot be completed.
    """
    tokenizer: Any = model.pipeline.tokenizer
    mailbox, request = Mailbox(), next_request()
    sequences: list[Sequence] = []
    choices: dict[Job, _Choice] = {}
    for number, item in enumerate(inputs):
        for copy in range(copies):
            constraints = make_constraints(tokenizer, options)  # stateful: one for each sequence
            stop = StopStringChecker(tokenizer.decode, options.stop_strings or [])
            sequence = Sequence(
                request, mailbox, item, token_options(options), number, copy,
                (*processors, *constraints), stop if options.stop_strings else None, num_top,
                is_streamed=disconnected is None,
            )  # fmt: skip
            choices[sequence] = _Choice(len(choices), tokenizer, options, num_top is not None)
            sequences.append(sequence)
    metrics, start = model.worker.metrics, time.monotonic()
    prompt_tokens = sum(len(item.input_ids) for item in inputs)
    metrics.server.prompt_tokens.labels(model.name).inc(prompt_tokens)
    model.worker.submit([*sequences])
    unfinished, is_first, next_poll = {*sequences}, True, start + _POLL_SECONDS
    try:
        while unfinished:
            now = time.monotonic()
            if now >= start + timeout:
                raise TimeoutError
            if now >= next_poll:
                if disconnected is not None and await disconnected():
                    raise ClientLeft
                next_poll = now + _POLL_SECONDS
            try:
                events = await mailbox.take(next_poll - now)
            except TimeoutError:
                continue
            if is_first:
                seconds = time.monotonic() - start
                metrics.server.first_token.labels(model.name).observe(seconds)
                is_first = False
            for job, tokens in _tokens_of(events).items():
                if tokens[-1].finished:
                    unfinished.discard(job)
                yield choices[job].add(tokens)
    finally:
        if unfinished:
            metrics.server.cancelled.labels(model.name).inc()
        for sequence in unfinished:
            sequence.cancel()


def _tokens_of(events: list[tuple[Job, Any]]) -> dict[Job, list[Token]]:
    """New tokens of each sequence; those of several steps together if the loop is late.

    Raises:
        Exception: the error of a sequence that failed.
    """
    tokens = dict[Job, list[Token]]()
    for job, event in events:
        if isinstance(event, Failure):
            raise event.error
        assert isinstance(event, Tokens)
        tokens.setdefault(job, []).extend(event.tokens)
    return tokens


def encode_prompts(
    model: ServedModel,
    prompts: SequenceOf[Any],
    *,
    truncate: bool,
    room: int,
    field: str = "prompt",
) -> list[GenerationInput]:
    """Prompts as inputs of the decoder.

    Args:
        model: the model.
        prompts: texts, or lists of token ids.
        truncate: truncate prompts that are too long.
        room: tokens that a truncated prompt leaves.
        field: field of the request that has the prompts.

    Raises:
        ApiError: the model generates no text, a prompt is too long, or an id is out of range.
    """
    pipeline = model.pipeline
    if not model.generates:
        raise wrong_task(model)
    task: Any = pipeline.task
    inputs = []
    for number, prompt in enumerate(prompts):
        name = field if len(prompts) == 1 else f"{field}[{number}]"
        if isinstance(prompt, str):
            try:
                prompt.encode()
                inputs += task.generation_inputs(
                    pipeline.model, pipeline.tokenizer, [prompt], truncate=truncate,
                    max_new_tokens=room,
                )  # fmt: skip
            except UnicodeEncodeError:
                raise ApiError(
                    f"{name} has an unpaired surrogate; send UTF-8", param=field
                ) from None
            except InputError as error:
                raise ApiError(error.message_for(0, name), param=field) from None
            except UserError as error:
                raise ApiError(f"{name}: {error}", param=field) from None
        elif model.task == "seq2seq":
            raise ApiError("a seq2seq model takes texts, not token ids", param=field)
        else:
            size = pipeline.model.config.vocab_size
            if bad := [token for token in prompt if not 0 <= token < size]:
                raise ApiError(f"token id {bad[0]} is not from 0 to {size - 1}", param=field)
            inputs.append(GenerationInput(prompt))
    return inputs


_ENDPOINTS = {
    "classification": "/v1/classify",
    "multilabel_classification": "/v1/classify",
    "ordinal_regression": "/v1/classify",
    "token_classification": "/v1/classify",
    "regression": "/v1/regress",
    "embedding": "/v1/embeddings",
    "masked_lm": "/v1/fill",
    "seq2seq": "/v1/translate",
    "language_modeling": "/v1/completions",
    "prefix_lm": "/v1/completions",
}


def wrong_task(model: ServedModel) -> ApiError:
    """Error for an endpoint that is not for the task of the model; names the right one."""
    right = _ENDPOINTS.get(model.task, "/v1/completions")
    return ApiError(
        f"{model.name!r} is a model for {model.task}; use {right}",
        param="model", code="wrong_endpoint",
    )  # fmt: skip
