"""Copy noise: a part that a target shares with its source is exchanged in both.

    source  | N;ACC(SG) Ciprus      the longest part of the source that the target has: "Ciprus"
    target  | Ciprust
    noise   | N;ACC(SG) Cilatus     a random piece of it becomes one of another example's part
    target  | Cilatust

A model that copies names or stems of a small training set learns these by heart, instead of
copying. Made-up ones prevent that: hallucinated stems of Anastasopoulos & Neubig 2019
("Pushing the Limits of Low-Resource Morphological Inflection"), recombination of Jia & Liang 2016.
"""

from __future__ import annotations

import numpy as np

from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, CollateFn
from miniformer.data.tokenizers.tokenizer import SpecialTokenTemplate

MIN_SHARED = 3  # tokens of a part that is exchanged
SHARED_COLUMN = "shared"  # of an example: `find_longest_shared` of its source and its labels


def find_longest_shared(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Start in the source, start in the target, and length of the longest part of both: int32 [3].

    Args:
        source, target: token ids or code points, [S] and [T].
    """
    equal = source[:, None] == target
    lengths = np.zeros((len(source) + 1, len(target) + 1), dtype=np.int32)
    for row, matches in enumerate(equal):  # lengths of the parts that end at two positions
        lengths[row + 1, 1:] = np.where(matches, lengths[row, :-1] + 1, 0)
    source_end, target_end = np.unravel_index(lengths.argmax(), lengths.shape)
    length = lengths[source_end, target_end]
    return np.array([source_end - length, target_end - length, length], dtype=np.int32)


def shared_part(example: Example, template: SpecialTokenTemplate) -> np.ndarray:
    """`find_longest_shared` of the source and the labels of an example, special tokens apart."""
    start, end = len(template.prefix), len(template.suffix)
    texts = [example[name][start : len(example[name]) - end] for name in ("source", "labels")]
    return find_longest_shared(*texts) + np.array([start, start, 0], dtype=np.int32)


def with_copy_noise(collate_fn: CollateFn, probability: float, *, max_length: int) -> CollateFn:
    """Adds copy noise to a collate function; it applies only with a random generator.

    Args:
        collate_fn: makes a batch of examples with `source`, `labels` and `SHARED_COLUMN`.
        probability: of changing an example with a shared part of at least `MIN_SHARED` tokens; 0:
            returns `collate_fn` itself.
        max_length: maximum number of tokens; an example that would exceed it is not changed.
    """
    if not probability:
        return collate_fn

    def collate(examples: list[Example], rng: np.random.Generator | None) -> Batch:
        if rng is None:
            return collate_fn(examples, rng)
        parts = [
            example["source"][start : start + length]
            for example in examples
            for start, _, length in [example[SHARED_COLUMN]]
            if length >= MIN_SHARED
        ]
        return collate_fn([change(example, parts, rng) for example in examples], rng)

    def change(example: Example, parts: list[np.ndarray], rng: np.random.Generator) -> Example:
        if example[SHARED_COLUMN][2] < MIN_SHARED or rng.random() >= probability:
            return example
        changed = exchange_piece(example, parts[rng.integers(len(parts))], rng)
        lengths = [len(changed[name]) for name in ("source", "labels")]
        return changed if max(lengths) <= max_length else example

    return collate


def exchange_piece(example: Example, donor: np.ndarray, rng: np.random.Generator) -> Example:
    """The example with a random piece of its shared part exchanged by one of `donor`.

    The new piece has about the length of the old one.

    Args:
        example: `source`, `labels` and `SHARED_COLUMN`.
        donor: token ids of the shared part of any example.
        rng: random generator.
    """
    source_start, target_start, length = (int(value) for value in example[SHARED_COLUMN])
    first, last = np.sort(rng.choice(length + 1, 2, replace=False))
    size = int(np.clip(last - first + rng.integers(-1, 2), 1, len(donor)))
    offset = rng.integers(len(donor) - size + 1)
    piece = donor[offset : offset + size]
    result = dict(example)
    for name, start in (("source", source_start), ("labels", target_start)):
        ids = example[name]
        before, after = ids[: start + first], ids[start + last :]
        result[name] = np.concatenate([before, piece.astype(ids.dtype), after])
    return result
