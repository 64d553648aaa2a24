"""Inputs as the graphs read them, and answers of their outputs; `export.json` has the settings.

Letters: T tokens or vectors, F numbers of a vector, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from miniformer.exporters.onnx.runner.decoding import RunError, log_softmax

Settings = dict[str, Any]  # of export.json
Decode = Callable[[Sequence[int]], str]
MASK = "[MASK]"  # of a text; it stands for one token
NUM_FILLS = 5  # best tokens for each mask


class Row(NamedTuple):
    """An encoded input.

    Args:
        inputs: token ids, or vectors, float [T, F].
        types: token types.
        base, scale: offset and scale of its value; of a series.
    """

    inputs: Any
    types: Sequence[int] = ()
    base: float = 0.0
    scale: float = 1.0


def encode(
    values: Sequence[Any], about: Settings, tokenizer: Any, truncate: bool, room: int = 0
) -> list[Row]:
    """Encodes inputs.

    Args:
        values: texts, pairs of texts, or lists of vectors.
        about: content of export.json.
        tokenizer: tokenizer of the inputs.
        truncate: truncate inputs that are too long, as training does.
        room: number of new tokens that a prompt leaves room for.
    """
    settings, rows = about["input"], list[Row]()
    limit = settings["max_length"] - (0 if "encoder" in about["files"] else room)
    if not values:
        raise RunError("there is no input")
    for number, value in enumerate(values, 1):
        if settings["kind"] == "features":
            row, length = encode_vectors(value, settings, limit)
        else:
            row, length = encode_text(value, settings, tokenizer, limit)
        if length > limit and not (truncate and settings["can_truncate"] and limit > 0):
            spare = f" with max_new_tokens={room}" if room else ""
            hint = ", or truncate it" if settings["can_truncate"] else ""
            raise RunError(
                f"input {number} is {length} long; the model reads at most {max(0, limit)}{spare}"
                f"; shorten it{hint}"
            )
        if not len(row.inputs):
            raise RunError(f"input {number} is empty")
        rows.append(row)
    return rows


def encode_text(value: Any, settings: Settings, tokenizer: Any, limit: int) -> tuple[Row, int]:
    """A text or a pair of texts with special tokens; and its length before truncation."""
    is_pair = settings["kind"] == "pair"
    texts = value if is_pair and isinstance(value, list | tuple) else [value]
    if len(texts) != 1 + is_pair or not all(isinstance(text, str) for text in texts):
        raise RunError(f"an input must be {'two texts' if is_pair else 'a text'}, not {value!r}")
    first, second, *_ = [*(token_ids(text, settings, tokenizer) for text in texts), []]
    prefix = settings["prefix"] or ([] if first else settings["if_empty"])
    separator, suffix = settings["separator"] if is_pair else [], settings["suffix"]
    length = len([*prefix, *first, *separator, *second, *suffix])
    if settings["keeps_end"]:
        return Row([*prefix, *first][-max(1, limit) :]), length
    room = max(0, limit - len([*prefix, *separator, *suffix]))
    first = first[: max(room - len(second), room // 2)]
    second = second[: room - len(first)]
    ids = [*prefix, *first, *separator, *second, *suffix]
    types = [0] * len([*prefix, *first]) + [settings["separator_type"]] * len(separator)
    types += [settings["second_type"] if is_pair else 0] * (len(ids) - len(types))
    if settings["marks_shared"]:  # tokens that both texts have
        both = {*first} & {*second}
        types = [kind + 2 * (token in both) for kind, token in zip(types, ids, strict=True)]
    return Row(ids, types), length


def token_ids(text: str, settings: Settings, tokenizer: Any) -> list[int]:
    """Token ids of a text; for masked language modeling with masks."""
    if tokenizer is None:
        raise RunError("the model has no tokenizer.json; call generate_tokens from Python")
    mask, ids = settings["mask_id"], list[int]()
    for piece in [text] if mask is None else text.split(MASK):
        ids += [mask, *tokenizer.encode(piece, add_special_tokens=False).ids]
    if mask is not None and mask not in ids[1:]:
        raise RunError(f"an input must be a text with a {MASK}, not {text!r}")
    return ids[1:]


def encode_vectors(value: Any, settings: Settings, limit: int) -> tuple[Row, int]:
    """Vectors, standardized as in training, with keys in order; and their number."""
    base, scale, width, series = 0.0, 1.0, settings["width"], settings["series"]
    try:
        rows = [[x[key] for key in sorted(x)] if isinstance(x, dict) else x for x in value]
        raw = np.array(rows, np.float64)
        if raw.ndim != 2 or raw.shape[1] != width or not np.isfinite(raw).all():
            raise ValueError
    except (TypeError, ValueError, KeyError):
        raise RunError(f"an input must be a list of vectors of {width} numbers") from None
    x = raw.copy()
    if settings["means"] is not None:
        x = (raw - settings["means"]) / settings["stds"]
    if series is not None:  # whose next number is the value
        feature = raw[:, series["feature"]]
        base, scale = float(feature[-1]), float(feature.std()) + series["epsilon"]
        x[:, series["feature"]] = (feature - base) / scale
    return Row(x[: max(0, limit)], (), base, scale), len(x)


def batches(rows: list[Row], size: int = 32) -> Iterator[list[int]]:
    """Numbers of the rows of each batch, whose lengths are similar."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].inputs))
    return (order[first : first + size] for first in range(0, len(rows), size))


def answer(row: Row, x: np.ndarray, about: Settings, decode: Decode) -> Any:
    """The answer of the outputs of one input.

    Args:
        row: the input.
        x: outputs, float64 [outputs], or for masked language modeling [T, V].
        about: content of export.json.
        decode: makes a text of token ids.
    """
    settings = about["output"]
    labels, kind = settings["labels"], settings["kind"]
    if kind == "vector":
        return x.tolist()
    if kind == "values":
        numbers = row.base + row.scale * (np.array(settings["means"]) + settings["stds"] * x)
        if labels:
            return dict(zip(labels, numbers.tolist(), strict=True))
        return numbers.tolist() if settings["is_list"] else float(numbers[0])
    if kind == "fills":
        return fill(row, x, about["input"]["mask_id"], decode)
    if kind == "labels":
        p = 1 / (1 + np.exp(-x))
        chosen = [labels[n] for n in np.flatnonzero(p >= settings["thresholds"])]
        return {"labels": chosen, "scores": dict(zip(labels, p.tolist(), strict=True))}
    p = np.exp(log_softmax(x))
    # Of ordered classes the median.
    best = int((p.cumsum()[:-1] < 0.5).sum() if kind == "ordered_label" else p.argmax())
    scores = dict(zip(labels, p.tolist(), strict=True))
    return {"label": labels[best], "score": float(p[best]), "scores": scores}


def fill(row: Row, logits: np.ndarray, mask_id: int, decode: Decode) -> dict[str, Any]:
    """A text with filled masks, and the best tokens of each mask."""
    ids, gaps = np.array(row.inputs), []
    for column in np.flatnonzero(ids == mask_id):
        p = np.exp(log_softmax(logits[column]))
        best = np.argsort(-p)[:NUM_FILLS].tolist()
        gaps.append([{"token": decode([token]), "score": float(p[token])} for token in best])
        ids[column] = best[0]
    return {"text": decode(ids.tolist()), "gaps": gaps}


def read_json(text: str) -> Any:
    """An input of the command line that is no text."""
    try:
        return json.loads(text)
    except ValueError:
        raise RunError(f"an input must be JSON, such as '[...]', not {text!r}") from None


def cut(text: str, options: Settings) -> str:
    """The text before the first stop string."""
    stops = options["stop_strings"] or []
    return text[: min((text.find(stop) for stop in stops if stop in text), default=None)]
