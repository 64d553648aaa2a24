"""Fit of the wide head of tags: a linear-chain conditional random field.

The fit maximizes the probability of the tags of each sequence with an L2 penalty, by L-BFGS. A
fifth of the sequences selects the penalty.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from miniformer.config import TransformerConfig
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.model.wide_head.chain import ChainHead
from miniformer.model.wide_head.word_context import WordFeatures, word_feature_keys
from miniformer.training.tuning.wide_head.chain_loss import Chain, chain_loss
from miniformer.training.tuning.wide_head.data import FittedHead
from miniformer.training.tuning.wide_head.matrix import compress
from miniformer.training.tuning.wide_head.ngrams import count_keys

_MAX_VALUES = 20_000_000  # of the weight: 80 MB
_UNUSED_KEY = torch.iinfo(torch.int64).max  # of a head with room for more features
_STRENGTHS = (1.0, 4.0, 16.0)
_HELD_OUT_SHARE = 0.2
_MIN_SEQUENCES = 20  # with fewer, no part is held out
_SELECTION_ITERATIONS, _MAX_ITERATIONS = 30, 60

# Weight [K, C], bias [C], transitions [C, C] and start [C]; see `ChainHead`.
Solution = tuple[Tensor, Tensor, Tensor, Tensor]


def fit_chain_head(
    config: TransformerConfig, data: MiniFormerDataModule, console: Console
) -> FittedHead | None:
    """Fits the wide head of tags to the training data, and prints its held-out loss.

    Args:
        config: of the model; its `wide_head` has the number of features, or is null.
        data: the datamodule, set up; its training examples are in memory.
        console: output.

    Returns:
        The head; None: no feature is in several sequences.
    """
    started = time.perf_counter()
    features = _fit_features(config, data)
    if features is None:
        return None
    groups = [{"type": "words", "size": features.size}]
    head = ChainHead(dataclasses.replace(config, wide_head=groups))
    head.groups[0].load_state_dict(features.state_dict())
    matrix, labels, lengths = _training_words(head, data)
    problem = ChainProblem(matrix, Chain(labels, lengths), config.output_dim or 1)
    strength, evidence, start = _STRENGTHS[1], "", problem.zeros()
    if len(lengths) >= _MIN_SEQUENCES:
        strength, loss, start = _select_strength(problem)
        evidence = f"; on a fifth of the training data, held out: loss {loss:.4g}"
    solution = problem.solve(strength, start)
    for name, value in zip(("weight", "bias", "transitions", "start"), solution, strict=True):
        getattr(head, name).copy_(value)
    # Until the first validation has shown what the Transformer adds.
    head.mix.copy_(torch.tensor([0.0, 1.0]))
    head.next_mix.copy_(head.mix)
    seconds = time.perf_counter() - started
    summary = f"{features.size:,} words, affixes and neighbors"
    console.print(f"wide head: {summary}, fitted in {seconds:.0f} s{evidence}")
    return FittedHead(ResolvedSetting("wide_head", "on", summary), groups, head.state_dict())


def _fit_features(config: TransformerConfig, data: MiniFormerDataModule) -> WordFeatures | None:
    """The most frequent features, as many as there is room for."""
    batches = data.ordered_batches("train")
    keys, counts = count_keys(word_feature_keys(x["word_hashes"]).flatten(1) for x in batches)
    given = None if config.wide_head is None else config.wide_head[0]["size"]
    size = given or min(len(keys), _MAX_VALUES // (config.output_dim or 1))
    if not size:
        return None
    features = WordFeatures(size)
    selected = counts.argsort(descending=True, stable=True)[:size].sort().values
    padding = (0, size - len(selected))
    features.keys.copy_(torch.nn.functional.pad(keys[selected], padding, value=_UNUSED_KEY))
    return features


def _training_words(
    head: ChainHead, data: MiniFormerDataModule
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Features of the predicted words, sparse [N, K]; their labels; and the sequences' lengths."""
    columns, counts, labels, lengths = [], [], [], []
    for batch in data.ordered_batches("train"):
        is_word = batch["word_lengths"] > 0
        index, values = (
            head.predicted(x, _as_inputs(batch))[is_word] for x in head.groups[0](batch)
        )
        columns.append(index[values > 0])
        counts.append((values > 0).sum(1))
        labels.append(batch["labels"][is_word])
        lengths.append(is_word.sum(1).numpy())
    count = torch.cat(counts)
    rows = torch.arange(len(count)).repeat_interleave(count)
    coordinates = torch.stack([rows, torch.cat(columns)])
    shape = (len(count), head.groups[0].size)
    values = torch.ones(coordinates.shape[1])
    matrix = torch.sparse_coo_tensor(coordinates, values, shape, check_invariants=True)
    return matrix.coalesce(), torch.cat(labels), np.concatenate(lengths)


def _as_inputs(batch: Batch) -> dict[str, Tensor | None]:
    return {name: batch[name] for name in ("context_before", "word_lengths")}


class ChainProblem:
    """Penalized loss of a conditional random field.

    Args:
        matrix: features of the words of all sequences, one after the other, sparse [N, K].
        chain: their labels and sequences.
        outputs: C.
    """

    def __init__(self, matrix: Tensor, chain: Chain, outputs: int) -> None:
        self.matrix, self.chain, self.outputs = matrix, chain, outputs
        self._rows, self._columns = compress(matrix), compress(matrix.t())

    def zeros(self) -> Solution:
        """The solution before the fit."""
        size, outputs = self.matrix.shape[1], self.outputs
        shapes = ((size, outputs), (outputs,), (outputs, outputs), (outputs,))
        weight, bias, transitions, start = map(torch.zeros, shapes)
        return weight, bias, transitions, start

    def loss(self, solution: Solution) -> float:
        """Loss without penalty, in nats a word."""
        weight, bias, transitions, start = solution
        loss, *_ = chain_loss(self._rows @ weight + bias, transitions, start, self.chain)
        return loss / len(self.chain.labels)

    def solve(
        self, strength: float, start: Solution, iterations: int = _MAX_ITERATIONS
    ) -> Solution:
        """Solution with the lowest loss; the bias has no penalty."""
        values = [value.clone().requires_grad_() for value in start]
        weight, bias, *scores = values
        count = len(self.chain.labels)
        penalty = 1 / (strength * count)
        optimizer = torch.optim.LBFGS(
            values,
            max_iter=iterations,
            history_size=8,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def closure() -> Tensor:
            outputs = self._rows @ weight + bias
            loss, gradient, *score_gradients = chain_loss(outputs, scores[0], scores[1], self.chain)
            weight.grad = self._columns @ (gradient / count) + penalty * weight
            bias.grad = gradient.sum(0) / count
            for value, score_gradient in zip(scores, score_gradients, strict=True):
                value.grad = score_gradient / count + penalty * value
            squares = sum(value.square().sum() for value in (weight, *scores))
            return torch.as_tensor(loss / count) + penalty / 2 * squares

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        solved = [value.detach() for value in values]
        return solved[0], solved[1], solved[2], solved[3]

    def split(self, share: float) -> Iterator[ChainProblem]:
        """Yields the problems of `share` of the sequences and of the others."""
        count = len(self.chain.lengths)
        order = np.random.default_rng(0).permutation(count)
        of_word = np.repeat(np.arange(count), self.chain.lengths)
        for part in np.split(order, [int(count * share)]):
            rows = torch.from_numpy(np.flatnonzero(np.isin(of_word, part)))
            chain = Chain(self.chain.labels[rows], self.chain.lengths[np.sort(part)])
            yield ChainProblem(self.matrix.index_select(0, rows).coalesce(), chain, self.outputs)


def _select_strength(problem: ChainProblem) -> tuple[float, float, Solution]:
    """Strength with the lowest loss on held-out sequences, that loss, and the solution."""
    held_out, rest = problem.split(_HELD_OUT_SHARE)
    solution, best = problem.zeros(), None
    for strength in _STRENGTHS:
        solution = rest.solve(strength, solution, _SELECTION_ITERATIONS)
        loss = held_out.loss(solution)
        if best is not None and not loss < best[1]:
            break
        best = strength, loss, solution
    assert best is not None
    return best
