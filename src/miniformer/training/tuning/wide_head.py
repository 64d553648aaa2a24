"""Settings and fit of a model's wide head: a linear model of n-grams, before training.

| setting                     | value                                                    |
|-----------------------------|----------------------------------------------------------|
| model_config.wide_size      | the n-grams that several training texts have             |
| model_config.wide_length    | 3 tokens, or 5 characters or bytes                       |
| model_config.wide_positions | true, if all training texts have the same number of tokens |

The fit minimizes the task's own loss plus an L2 penalty, which is convex for all tasks with a wide
head, by L-BFGS over the whole training data. A fifth of the examples selects the penalty; the head
is then fitted to all of them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from miniformer.config import TransformerConfig, UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import ModelSettings
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.model.wide_head import UNKNOWN, WideHead, ngram_keys
from miniformer.tasks.base import Task
from miniformer.tasks.common.input_encoding import model_inputs

_MAX_TOKENS = 5_000_000  # with more, a Transformer learns them by itself
_MAX_ALPHABET_SIZE = 300  # vocabulary size of characters and bytes
_MAX_VALUES = 20_000_000  # of the weight: 80 MB
_HELD_OUT_SHARE = 0.2
_MIN_EXAMPLES = 20  # with fewer, no part is held out
# The L2 penalty of n examples is 1 / (strength * n): the C of other libraries.
_STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0)
_MAX_ITERATIONS = 60
_UNUSED_KEY = torch.iinfo(torch.int64).max  # of a head with room for more n-grams
_INPUT_KEYS = ("inputs", "attention_mask", "token_types", "about")


def resolve_wide_head(
    config: ModelSettings, model_config: TransformerConfig, data: MiniFormerDataModule
) -> tuple[ResolvedSetting, dict[str, Any]] | None:
    """Setting of the wide head and its fields of the model config; None: no head, or a given one.

    Args:
        config: settings of the run.
        model_config: the model's config so far.
        data: the datamodule, set up.

    Raises:
        UserError: a wide head is requested where there can be none.
    """
    if model_config.wide_size is not None or config.wide_head == "none":
        return None
    examples, tokens = data.in_memory_examples("train"), data.num_tokens("train")
    reads_texts = data.task.supports_wide_head and data.task.reads_text()
    if not reads_texts or examples is None or not tokens or data.val_path is None:
        if config.wide_head == "auto":
            return None
        raise UserError(
            "wide_head=ngrams needs texts in memory, validation data, and a task with one output "
            "for each text, such as classification; leave it out"
        )
    if config.wide_head == "auto" and (
        tokens > _MAX_TOKENS or config.init_from is not None or config.pretrain is not None
    ):
        return None
    lengths = examples.lengths("inputs")
    length = 5 if model_config.vocab_size <= _MAX_ALPHABET_SIZE else 3
    length = config.model_config.get("wide_length", length)
    positions = len(lengths) > 1 and bool((lengths == lengths[0]).all())
    positions = config.model_config.get("wide_positions", positions)
    keys, _ = count_ngrams(data, length=length, positions=positions)
    size = min(len(keys), _MAX_VALUES // (model_config.output_dim or 1))
    if not size:
        return None
    reason = f"{size:,} n-grams of up to {length} tokens that several training texts have"
    fields = {"wide_size": size, "wide_length": length, "wide_positions": positions}
    return ResolvedSetting("wide_head", "ngrams", reason), fields


def count_ngrams(
    data: MiniFormerDataModule, *, length: int, positions: bool
) -> tuple[Tensor, Tensor]:
    """Hashes of n-grams that several training examples have, ascending, and their document counts.

    Args:
        data: the datamodule, set up.
        length, positions: see `ngram_keys`.

    Returns:
        int64 [K] and [K].
    """
    hashes = []
    for batch in data.ordered_batches("train"):
        inputs = (batch["inputs"], batch.get("attention_mask"), batch.get("token_types"))
        keys = ngram_keys(*inputs, length=length, positions=positions).sort(-1).values
        is_first = keys != UNKNOWN
        is_first[:, 1:] &= keys[:, 1:] != keys[:, :-1]
        hashes.append(keys[is_first])
    keys, counts = torch.unique(torch.cat(hashes), return_counts=True)
    return keys[counts > 1], counts[counts > 1]


def fit_wide_head(model: Any, task: Task, data: MiniFormerDataModule, console: Console) -> None:
    """Fits the wide head of a model to the training data, and prints its held-out metrics.

    Args:
        model: has a `wide_head`.
        task: predicts outputs by `model.classify`.
        data: the datamodule, set up.
        console: output.
    """
    started = time.perf_counter()
    head: WideHead = model.wide_head
    store = data.in_memory_examples("train")
    assert store is not None
    examples = len(store)
    _set_ngrams(head, *count_ngrams(data, length=head.length, positions=head.positions), examples)
    features, labels = _features_and_labels(model, data)
    order = np.random.default_rng(0).permutation(examples)
    num_held_out = int(examples * _HELD_OUT_SHARE) if examples >= _MIN_EXAMPLES else 0
    held_out, rest = (torch.from_numpy(part) for part in np.split(order, [num_held_out]))
    strength, metrics = _STRENGTHS[1], None
    if num_held_out:
        strength, metrics = _select_strength(model, task, features, labels, rest, held_out)
    problem = _Problem(model, task, features, labels)
    weight, bias = problem.solve(strength, (torch.zeros_like(head.weight), head.bias.clone()))
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    # Until the first validation has shown what the Transformer adds.
    head.mix.copy_(torch.tensor([0.0, 1.0]))
    head.next_mix.copy_(head.mix)
    seconds = time.perf_counter() - started
    evidence = ""
    if metrics is not None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        evidence = f"; on a fifth of the training data, held out: {values}"
    console.print(f"wide head: {len(head.keys):,} n-grams, fitted in {seconds:.0f} s{evidence}")


def _set_ngrams(head: WideHead, keys: Tensor, counts: Tensor, examples: int) -> None:
    """Sets the known n-grams of a head: the most frequent, as many as it has room for."""
    size = len(head.keys)
    selected = counts.argsort(descending=True, stable=True)[:size].sort().values
    padding = size - len(selected)
    idf = ((1 + examples) / (1 + counts[selected])).log() + 1
    head.keys.copy_(torch.nn.functional.pad(keys[selected], (0, padding), value=_UNUSED_KEY))
    head.idf.copy_(torch.nn.functional.pad(idf, (0, padding)))


def _select_strength(
    model: Any, task: Task, features: Tensor, labels: Batch, rest: Tensor, held_out: Tensor
) -> tuple[float, dict[str, float]]:
    """Strength with the lowest loss on the held-out examples, and its metrics there."""
    problem = _Problem(model, task, *_select(features, labels, rest))
    test = _Problem(model, task, *_select(features, labels, held_out))
    head: WideHead = model.wide_head
    solution = (torch.zeros_like(head.weight), head.bias.clone())
    best: tuple[float, float, dict[str, float]] | None = None
    for strength in _STRENGTHS:
        solution = problem.solve(strength, solution)
        loss, count = test.loss(*solution)
        if best is not None and loss / count >= best[0]:
            break
        best = float(loss / count), strength, test.metrics(*solution)
    assert best is not None
    return best[1], best[2]


class _Problem:
    """Penalized loss of the linear head over some examples.

    Args:
        model: its config is that of the outputs.
        task: has the loss.
        features: of the examples, sparse [n, K].
        labels: their batch, without inputs.
    """

    def __init__(self, model: Any, task: Task, features: Tensor, labels: Batch) -> None:
        self.task, self.features, self.labels = task, features, labels
        self.transposed = features.t().coalesce()
        self.outputs = FixedOutputs(model.config)

    def loss(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss and its count."""
        self.outputs.value = torch.sparse.mm(self.features, weight) + bias
        return self.task.loss(self.outputs, self.labels)

    def metrics(self, weight: Tensor, bias: Tensor) -> dict[str, float]:
        """The task's metrics."""
        self.outputs.value = torch.sparse.mm(self.features, weight) + bias
        return self.task.compute_metrics([self.task.eval_step(self.outputs, self.labels)])

    def solve(self, strength: float, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Weight and bias with the lowest loss; the bias has no penalty."""
        weight, bias = (value.clone().requires_grad_() for value in start)
        penalty = 1 / (strength * self.features.shape[0])
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_MAX_ITERATIONS,
            history_size=8,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            with torch.no_grad():
                outputs = torch.sparse.mm(self.features, weight) + bias
            self.outputs.value = outputs.requires_grad_()
            loss, count = self.task.loss(self.outputs, self.labels)
            loss = loss / count.clamp_min(1e-12)
            (gradient,) = torch.autograd.grad(loss, outputs)
            weight.grad = torch.sparse.mm(self.transposed, gradient) + penalty * weight.detach()
            bias.grad = gradient.sum(0)
            return loss.detach() + penalty / 2 * weight.detach().square().sum()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return weight.detach(), bias.detach()


class FixedOutputs:
    """Stands for a model in `Task.loss` and `Task.eval_step`: its outputs are `value`.

    Args:
        config: of the model.
    """

    training = False

    def __init__(self, config: TransformerConfig) -> None:
        self.config = config
        self.value = torch.zeros(0)

    def classify(self, **inputs: Any) -> Tensor:
        """The outputs, whatever the inputs are."""
        return self.value


def labels_of(batch: Batch) -> Batch:
    """A batch without its inputs, for `FixedOutputs`."""
    labels = {name: value for name, value in batch.items() if name not in _INPUT_KEYS}
    return {**labels, "inputs": batch["inputs"][:, :1]}


def concat_labels(batches: list[Batch]) -> Batch:
    """One batch of several of `labels_of`."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _features_and_labels(model: Any, data: MiniFormerDataModule) -> tuple[Tensor, Batch]:
    """Features of the training examples, sparse [n, K], and their labels."""
    columns, values, labels = [], [], []
    for batch in data.ordered_batches("train"):
        inputs = model_inputs(model, batch)
        index, value = model.wide_head.features(*inputs.values())
        columns += [row[known] for row, known in zip(index, value > 0, strict=True)]
        values.append(value[value > 0])
        labels.append(labels_of(batch))
    lengths = torch.tensor([len(row) for row in columns])
    rows = torch.arange(len(columns)).repeat_interleave(lengths)
    shape = (len(columns), len(model.wide_head.keys))
    coordinates = torch.stack([rows, torch.cat(columns)])
    features = torch.sparse_coo_tensor(
        coordinates, torch.cat(values), shape, check_invariants=True
    ).coalesce()
    return features, concat_labels(labels)


def _select(features: Tensor, labels: Batch, rows: Tensor) -> tuple[Tensor, Batch]:
    """The examples at `rows`."""
    selected = features.index_select(0, rows).coalesce()
    return selected, {name: value[rows] for name, value in labels.items()}
