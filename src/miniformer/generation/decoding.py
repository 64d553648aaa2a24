"""Autoregressive decoding with a key-value cache: what all ways of choosing tokens share.

Letters: B rows, R rows still written, T prompt length, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, TransformerConfig
from miniformer.generation.processors import Processor, check_finite, process, processors_of
from miniformer.generation.sampling import choose

Until = Callable[[list[int]], bool]  # whether a text of these new tokens is complete
_READ = 512  # columns of prompts; PyTorch's attention is faster where there are many
_WORTH_RECORDING = 16  # tokens to come: a recording takes as long as some steps
_ENDED = 0.25  # share of the rows that must have ended before they are taken out of the batch


class Model(Protocol):
    """What decoding needs of a model."""

    config: TransformerConfig

    def new_cache(self, batch_size: int, capacity: int, kind: str = "window") -> Any:
        """A cache of keys and values; see `miniformer.model.cache`."""

    def features(self, *inputs: Any, **options: Any) -> Tensor:
        """What the head reads."""

    def logits(self, features: Tensor) -> Tensor:
        """The head."""

    def recorder(self) -> Any:
        """What records steps on a GPU; see `GenerationConfig.cuda_graph`."""

    def parameters(self) -> Any:
        """As of any `nn.Module`."""

    def modules(self) -> Any:
        """As of any `nn.Module`."""

    def train(self, mode: bool = True) -> Any:
        """As of any `nn.Module`."""


class Begun:
    """Prompts that a model has read, each of them `copies` times, ready to be gone on with.

    Args:
        model: in eval mode.
        ids: prompts, int [B, T].
        mask: which of it is real, bool [B, T]; None: all.
        new: tokens that may come.
        memory: the encoded sources of a decoder, or nothing.
        copies: rows of each prompt, which is read once.
        kind: of the cache; see `miniformer.model.cache`.
        slide: where a row is as long as the model reads, go on from its last half.
        weights: how weights are read after the prompt; see `GenerationConfig`.
        graph: steps are those of a CUDA graph; see `GenerationConfig`.

    Attributes:
        logits: of the next token, [R, V].
        tokens: prompts and what came after them, int [R, T + new]; -1: padding.
        first: the column of the first token that is in the cache, int [R].
    """

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor | None,
        new: int,
        memory: Sequence[Any] = (),
        copies: int = 1,
        kind: str = "window",
        slide: bool = False,
        weights: str = "float32",
        graph: bool = False,
    ) -> None:
        self.model, self.memory = model, list(memory)
        self.length, self.kind, self.longest = ids.shape[1], kind, model.config.max_seq_len
        self.slide, self.left = slide, new
        self.copies = 1  # rows, one after the other, that share a source
        engine = getattr(model, "engine", None)
        self.engine = None if engine is None else engine(weights)
        self.recorder = model.recorder() if graph else None
        if self.engine is not None or self.recorder is not None:
            self.kind = "full"
        self.steps: Any = None  # of the engine or recorded, from this cache on
        self.tokens = ids.new_full((len(ids), self.length + new), -1)
        self.tokens[:, : self.length] = ids if mask is None else ids.where(mask, -1)
        self.first = (
            (self.tokens < 0).cumprod(1).sum(1) if mask is not None else ids.new_zeros(len(ids))
        )
        self._read(ids, mask)
        if copies > 1:
            self.keep(torch.arange(len(ids), device=ids.device).repeat_interleave(copies), copies)

    @property
    def written(self) -> Tensor:
        """All tokens so far, int [R, T + new so far]."""
        return self.tokens[:, : self.length]

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """For what is done between steps; see `Engine`."""
        if self.engine is None:
            return contextlib.nullcontext()
        found: contextlib.AbstractContextManager[None] = self.engine.undisturbed()
        return found

    def go_on(self, token: Tensor) -> None:
        """Takes the next token of each row, int [R]."""
        self.tokens[:, self.length] = token
        self.length, self.left = self.length + 1, self.left - 1
        full = self.length - self.first > self.longest if self.slide else self.first
        # Columns may run out before a row is full: those of longer rows that have been taken out.
        if self.slide and (bool(full.any()) or self.cache.length == self.cache.capacity):
            self._forget(full)
            return
        if self.steps is None and self.engine is not None:
            mask = self.memory[0].mask if self.memory else None
            self.steps = self.engine.begin(self.cache, mask, self.copies)
        elif self.steps is None and self.recorder and self.left >= _WORTH_RECORDING:
            self.steps = self.recorder(self.cache, self.memory)
        if self.steps is not None:
            self.logits = self.steps(token)
            return
        features = self.model.features(token[:, None], *self.memory, cache=self.cache)  # [R, 1, D]
        self.logits = self.model.logits(features[:, 0])

    def keep(self, rows: Tensor, copies: int = 1) -> None:
        """Goes on with these rows, int [any]: fewer than there were, or `copies` of each."""
        if self.steps is not None:
            self.steps.settle()
        sources = rows // self.copies
        self.copies = copies if self.engine is not None else 1
        sources = sources[:: self.copies]
        self.cache.select(rows, sources)
        self.logits, self.tokens = self.logits[rows], self.tokens[rows]
        self.first, self.steps = self.first[rows], None
        self.memory = [
            type(each)(*(None if x is None else x[sources] for x in each)) for each in self.memory
        ]

    def exchange(self, rows: Tensor) -> None:
        """Each row goes on from what row `rows`, int [R], was: another copy of the same prompt."""
        if self.steps is None:
            self.cache.reorder(rows, same_source=True)
        else:
            self.steps.exchange(rows)
        self.tokens, self.first = self.tokens[rows], self.first[rows]

    def best(self, many: int) -> tuple[Tensor, Tensor]:
        """The likeliest next tokens of each row: log-probabilities and tokens, [R, many] both."""
        if self.engine is not None:
            found: tuple[Tensor, Tensor] = self.engine.best(self.logits, many)
            return found
        likeliest, tokens = self.logits.float().log_softmax(-1).topk(many)
        return likeliest, tokens

    def _forget(self, full: Tensor) -> None:
        """Reads the texts again, of those that are `full`, bool [R], only the last half."""
        self.first = torch.where(full, self.length - half(self.longest), self.first)
        columns = torch.arange(int(self.first.min()), self.length, device=full.device)
        mask = columns >= self.first[:, None]
        ids = self.tokens[:, columns[0] : self.length].where(mask, 0)
        self._read(ids, None if bool(mask.all()) else mask)

    def _read(self, ids: Tensor, mask: Tensor | None) -> None:
        """Makes a cache and fills it with prompts."""
        capacity = ids.shape[1] + self.left
        if self.slide:
            capacity = min(capacity, self.longest)
        self.cache = self.model.new_cache(len(ids), capacity, self.kind)
        if mask is not None:  # a row's text is as long as it is alone
            self.cache.spans = (mask.sum(1, keepdim=True) + self.left).clamp_max(self.longest)
        if self.engine is not None and self.engine.reads and ids.shape[1] <= _READ:
            self.steps = self.engine.begin(self.cache)
            self.logits = self.steps.read(ids, mask)
            return
        features = self.model.features(ids, *self.memory, mask, cache=self.cache)  # [R, T, D]
        self.logits, self.steps = self.model.logits(features[:, -1]), None  # [R, V]


def half(longest: int) -> int:
    """Tokens that are kept of a text that has become too long to be read."""
    return max(1, longest // 2)


class Step(NamedTuple):
    """New tokens of the rows still written, R of each."""

    rows: list[int]  # which they are
    tokens: list[int]
    log_p: list[float]  # that the model itself gives them; empty where nobody asks
    ended: list[bool]  # whether the row's text is complete now


def decode(
    begun: Begun,
    options: GenerationConfig,
    *,
    uniform: Tensor | None = None,
    processors: Sequence[Processor] = (),
    until: Until | None = None,
    scores: bool = True,
) -> Iterator[Step]:
    """Chooses a token for each row, again and again, until every text is complete.

    Rows that have ended are taken out, so that the others do not wait for them. What is small is in
    lists: for a few rows an operation on tensors takes longer than what it does.

    Args:
        begun: the prompts.
        options: how tokens are chosen.
        uniform: random numbers of each row and step, see `uniforms`; None: nothing is sampled.
        processors: the user's own; see `processors`.
        until: ends a text that is complete though no token says so.
        scores: whether log-probabilities are asked for.
    """
    changes = processors_of(options, begun.length, processors)
    # The kernels find the likeliest tokens while they add up all.
    likeliest = begun.engine is not None and options.temperature == 0 and not changes
    ends, rows = set(options.ends), list(range(len(begun.tokens)))
    over = [False] * len(rows)  # of these, which have ended
    texts: list[list[int]] = [[] for _ in rows]
    for step in range(1, options.max_new_tokens + 1):
        logits = begun.logits  # [R, V]
        with begun.undisturbed():
            if likeliest:
                found, token = (each[:, 0] for each in begun.best(1))
                check_finite(found, step)
                log_p = found.tolist() if scores else []
            else:
                allowed = process(changes, begun.written, logits, step)
                drawn = None if uniform is None else uniform[:, step - 1]
                token = choose(allowed, options, drawn)
                log_p = _log_p(logits, token) if scores else []
        tokens = token.tolist()
        ended = [each in ends for each in tokens]
        if until is not None:
            for text, new in zip(texts, tokens, strict=True):
                text.append(new)
            ended = [end or until(text) for end, text in zip(ended, texts, strict=True)]
        if any(over):
            alive = [place for place, done in enumerate(over) if not done]
            some = ([each[place] for place in alive] if each else [] for each in
                    (rows, tokens, log_p, ended))  # fmt: skip
            yield Step(*some)  # type: ignore[arg-type]
        else:
            yield Step(rows, tokens, log_p, ended)
        over = [one or other for one, other in zip(over, ended, strict=True)]
        if step == options.max_new_tokens or all(over):
            return
        begun.go_on(token)
        if sum(over) >= max(1, _ENDED * len(over)):
            kept = [place for place, done in enumerate(over) if not done]
            begun.keep(torch.tensor(kept, device=token.device))
            uniform = None if uniform is None else uniform[kept]
            rows, texts = [rows[place] for place in kept], [texts[place] for place in kept]
            over = [False] * len(rows)


def _log_p(logits: Tensor, token: Tensor) -> list[float]:
    """Log-probabilities of some tokens, int [R]; logits: [R, V]."""
    logits = logits.float()
    found: list[float] = (logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
    return found
