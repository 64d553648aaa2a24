"""Decoding with a graph of numpy arrays: greedy, sampling and beam search.

Letters: B rows, N beams, T columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

# Options: type, default, lowest and highest value. Logits are penalized, divided by temperature,
# and filtered by top_k, top_p and min_p, in this order.
OPTIONS: dict[str, tuple[Any, Any, float, float]] = {
    "max_new_tokens": (int, 50, 1, np.inf),
    "min_new_tokens": (int, 0, 0, np.inf),
    "temperature": (float, 1.0, 0, np.inf),  # 0: the most likely token
    "top_k": (int, None, 1, np.inf),
    "top_p": (float, None, 1e-9, 1),
    "min_p": (float, None, 0, 1),
    "seed": (int, None, 0, 2**63 - 1),
    "repetition_penalty": (float, 1.0, 1e-9, np.inf),
    "frequency_penalty": (float, 0.0, -np.inf, np.inf),
    "presence_penalty": (float, 0.0, -np.inf, np.inf),
    "no_repeat_ngram_size": (int, None, 1, np.inf),
    "num_return_sequences": (int, 1, 1, np.inf),
    "num_beams": (int, 1, 1, np.inf),
    "length_penalty": (float, 1.0, -np.inf, np.inf),
    "length_normalization": (str, "tokens", 0, 0),  # or gnmt
    "stop_strings": (str, None, 0, 0),
    "stop_token_ids": (int, None, 0, np.inf),
    "eos_id": (int, None, 0, np.inf),
}
_GREEDY = {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None, "seed": None}

Options = dict[str, Any]
StopFunction = Callable[[list[int]], bool]  # of the new tokens of a row


class RunError(Exception):
    """Wrong input or a damaged folder; the message names the fix."""


class Output(NamedTuple):
    """Generated tokens without EOS, and their log-probability; of beams, divided by length."""

    tokens: list[int]
    score: float


def resolve_options(stored: Options, given: Options) -> Options:
    """All options: those that are given, else the stored ones, else the defaults."""
    values = {name: default for name, (_, default, _, _) in OPTIONS.items()} | stored
    values |= (_GREEDY if (given.get("num_beams") or 1) > 1 else {}) | given
    for name, value in values.items():
        if name not in OPTIONS:
            raise RunError(f"{name} is no option of run.py; it has {', '.join(OPTIONS)}")
        kind, _, low, high = OPTIONS[name]
        if isinstance(value, bool) or not isinstance(value, kind | list | int | None):
            raise RunError(f"{name} must be of type {kind.__name__}, not {value!r}")
        if isinstance(value, int | float) and not low <= value <= high:
            raise RunError(f"{name} must be from {low:g} to {high:g}, not {value}")
    beams, copies = values["num_beams"], values["num_return_sequences"]
    if beams > 1 and (sampling := [name for name in _GREEDY if given.get(name)]):
        raise RunError(f"num_beams={beams} does not sample; leave {sampling[0]} out")
    if copies > 1 and copies > beams and (beams > 1 or not values["temperature"]):
        raise RunError(f"num_return_sequences={copies} needs num_beams={copies}, or sampling")
    return values


def end_tokens(options: Options) -> list[int]:
    """Tokens that end a text."""
    eos = options["eos_id"]
    return [*([] if eos is None else [eos]), *(options["stop_token_ids"] or [])]


class State:
    """Tokens of a batch with their keys and values; `logits` are of the next token, [B, V].

    Args:
        graph: maps inputs by name to outputs by name, see `run.Graph`.
        prompts: token ids of each row.
        source: keys and values of sources and their mask, by name; empty: there are none.
    """

    def __init__(self, graph: Any, prompts: Sequence[Any], source: dict[str, Any]) -> None:
        self.graph, self.source = graph, source
        ids, mask = pad(prompts, left=True)  # the last column has the last token of each row
        self.tokens = np.where(mask, ids, -1)
        self.mask = np.pad(mask, ((0, 0), (1, 0)))  # a past has one column or more
        past = (name for name in graph.inputs if name.startswith("past_key_values"))
        shapes = {name: graph.inputs[name].shape for name in past if name not in source}
        self.past: dict[str, Any] = {
            name: np.zeros((len(ids), shape[1], 1, shape[3])) for name, shape in shapes.items()
        }
        self.logits = self._run(ids)

    def append(self, tokens: np.ndarray) -> None:
        """Appends a token to each row, int [B]."""
        self.tokens = np.concatenate([self.tokens, tokens[:, None]], 1)
        self.mask = np.pad(self.mask, ((0, 0), (0, 1)), constant_values=True)
        self.logits = self._run(tokens[:, None])

    def select(self, rows: np.ndarray, same_source: bool = False) -> None:
        """Replaces the rows by rows of this state, int [any].

        With `same_source` each is replaced by a row with an equal source.
        """
        if np.array_equal(rows, np.arange(len(self.mask))):
            return
        self.past = {name: as_array(value)[rows] for name, value in self.past.items()}
        if not same_source:
            self.source = {name: as_array(value)[rows] for name, value in self.source.items()}
        self.tokens, self.mask, self.logits = self.tokens[rows], self.mask[rows], self.logits[rows]

    def _run(self, ids: np.ndarray) -> np.ndarray:
        feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": self.mask}
        feeds["logits_to_keep"] = np.array([ids.shape[1] - 1])
        outputs = self.graph.run({**feeds, **self.past, **self.source})
        logits: np.ndarray = outputs.pop("logits").numpy()[:, -1]
        self.past = {name.replace("present", "past_key_values"): x for name, x in outputs.items()}
        if not np.isfinite(logits.max(-1)).all():
            raise RunError("the logits of the model are not finite")
        return logits


def sample(
    state: State, options: Options, stop: StopFunction, names: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, float]]:
    """Yields row, token and log-probability of each new token; ended rows leave the batch.

    Args:
        state: after the prompts.
        options: of `resolve_options`.
        stop: see `StopFunction`.
        names: numbers of the prompt and of the copy of each row, which seed its samples.
    """
    count, seed = options["max_new_tokens"], options["seed"]
    seeds = [None if seed is None else [seed, *name] for name in names]
    uniform = np.stack([np.random.default_rng(seed).random(count) for seed in seeds])
    rows, new = np.arange(len(names)), [list[int]() for _ in names]
    for step in range(count):
        scores = penalized(state.logits, state, options, step)
        tokens = choose(scores, options, uniform[rows, step])
        logprobs = log_softmax(state.logits)[np.arange(len(rows)), tokens].tolist()
        for row, token, logprob in zip(rows.tolist(), tokens.tolist(), logprobs, strict=True):
            new[row].append(token)
            yield row, token, logprob
        running = np.flatnonzero([not stop(new[row]) for row in rows])
        if not len(running) or step + 1 == count:
            return
        state.select(running)
        rows = rows[running]
        state.append(tokens[running])


def choose(logits: np.ndarray, options: Options, uniform: np.ndarray) -> np.ndarray:
    """Samples a token of each row, int [B], by numbers in [0, 1), [B]; or takes the likeliest."""
    if options["temperature"] == 0:
        return np.asarray(logits.argmax(-1))
    scaled = (logits - logits.max(-1, keepdims=True)) / max(options["temperature"], 1e-30)
    order = None
    if options["top_k"] is not None or options["top_p"] is not None:
        order = np.argsort(-scaled)[:, : options["top_k"]]
        scaled = np.take_along_axis(scaled, order, -1)
    p = np.exp(log_softmax(scaled))
    if options["top_p"] is not None:  # of more likely tokens
        p[p.cumsum(-1) - p >= options["top_p"]] = 0
    if options["min_p"] is not None:
        p[p < options["min_p"] * p.max(-1, keepdims=True)] = 0
    sums = p.cumsum(-1, dtype=np.float64)
    limit = np.minimum(uniform[:, None] * sums[:, -1:], np.nextafter(sums[:, -1:], 0))
    index: np.ndarray = (sums <= limit).sum(-1)
    return index if order is None else order[np.arange(len(index)), index]


def penalized(scores: np.ndarray, state: State, options: Options, step: int) -> np.ndarray:
    """Scores of the next token, [B, V], after penalties and bans."""
    if (penalty := options["repetition_penalty"]) != 1:
        seen = counts(state.tokens, scores.shape) > 0
        scores = np.where(seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)
    if options["frequency_penalty"] or options["presence_penalty"]:
        new = counts(state.tokens[:, state.tokens.shape[1] - step :], scores.shape)
        scores = (
            scores - options["frequency_penalty"] * new - options["presence_penalty"] * (new > 0)
        )
    banned = np.zeros(scores.shape, bool)
    if size := options["no_repeat_ngram_size"]:
        for row, tokens in enumerate(state.tokens.tolist()):
            suffix = tokens[len(tokens) - size + 1 :]
            for end in range(size - 1, len(tokens)):
                if tokens[end] >= 0 and tokens[end - size + 1 : end] == suffix:
                    banned[row, tokens[end]] = True
    if step < options["min_new_tokens"]:
        banned[:, end_tokens(options)] = True
    if banned.all(-1).any():
        raise RunError("no token is allowed: bans mask all tokens")
    return np.where(banned, -np.inf, scores) if banned.any() else scores


def counts(tokens: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Number of each token in rows of tokens, int [B, V]; -1 is padding."""
    result = np.zeros(shape, np.int64)
    rows, columns = np.nonzero(tokens >= 0)
    np.add.at(result, (rows, tokens[rows, columns]), 1)
    return result


def beam_search(state: State, options: Options, stop: StopFunction) -> list[Output]:
    """The best `num_return_sequences` hypotheses of each input, whose N copies are in the state.

    Each step keeps the N best running and the N best ended hypotheses of an input.
    """
    width, last = options["num_beams"], options["max_new_tokens"]
    count = len(state.tokens) // width
    # Sum of log-probabilities and tokens of each hypothesis; all beams start equal.
    running = [[(0.0 if beam == 0 else -np.inf, list[int]()) for beam in range(width)]] * count
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(count)]
    for step in range(1, last + 1):
        sums = np.array([[score] for beams in running for score, _ in beams], np.float32)
        sums = sums + penalized(log_softmax(state.logits), state, options, step - 1)
        origins, done = list[int](), step == last
        for number, beams in enumerate(running):
            scores, candidates = sums[number * width :][:width].ravel(), []
            for rank, index in enumerate(largest(scores, 2 * width)):
                beam, token = divmod(index, sums.shape[1])
                score, tokens = float(scores[index]), [*beams[beam][1], token]
                if step == last or stop(tokens):
                    if rank < width:
                        ended[number].append((score / length_divisor(step, options), tokens))
                    score = -np.inf
                candidates.append((score, tokens, beam))
            ended[number] = sorted(ended[number], key=lambda item: -item[0])[:width]
            survivors = sorted(candidates, key=lambda item: -item[0])[:width]
            running[number] = [(score, tokens) for score, tokens, _ in survivors]
            origins += [number * width + beam for _, _, beam in survivors]
        if done or all(is_final(*pair, step, options) for pair in zip(running, ended, strict=True)):
            break
        state.select(np.array(origins), same_source=True)
        state.append(np.array([tokens[-1] for beams in running for _, tokens in beams]))
    eos, best = (
        end_tokens(options),
        [x for row in ended for x in row[: options["num_return_sequences"]]],
    )
    return [
        Output([token for token in tokens if token not in eos], score) for score, tokens in best
    ]


def is_final(running: list[Any], ended: list[Any], step: int, options: Options) -> bool:
    """True if no running hypothesis can still be one of the best: sums only decrease."""
    longest = options["max_new_tokens"]
    divisor = max(length_divisor(length, options) for length in (step + 1, longest))
    return len(ended) == len(running) and bool(ended[-1][0] >= running[0][0] / divisor)


def length_divisor(length: int, options: Options) -> float:
    """Divisor of the score of a hypothesis of `length` tokens."""
    base = (5 + length) / 6 if options["length_normalization"] == "gnmt" else length
    return float(base ** options["length_penalty"])


def largest(scores: np.ndarray, count: int) -> list[int]:
    """Indices of the largest scores, in descending order."""
    indices = np.argpartition(-scores, min(count, len(scores)) - 1)[:count]
    ordered: list[int] = indices[np.argsort(-scores[indices], kind="stable")].tolist()
    return ordered


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits along the last axis."""
    shifted = x - x.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def as_array(value: Any) -> np.ndarray:
    """A value of onnxruntime as an array."""
    return value if isinstance(value, np.ndarray) else np.asarray(value.numpy())


def pad(rows: Sequence[Any], left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Token ids, int [B, T], or vectors, float [B, T, F], padded with 0; and the mask, bool."""
    lengths = np.array([len(row) for row in rows])
    columns = np.arange(lengths.max())
    mask = columns >= (lengths.max() - lengths)[:, None] if left else columns < lengths[:, None]
    values = np.zeros((*mask.shape, *np.shape(rows[0])[1:]), np.asarray(rows[0]).dtype)
    values[mask] = np.concatenate(rows)
    return values, mask
