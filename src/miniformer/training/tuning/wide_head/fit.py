"""Wide head of a run: its features by held-out loss, and the fit to the training data.

Each group of features is proposed by the kind of inputs. The group with the lowest held-out loss of
a linear model is the first; another is added while it lowers that loss. N-grams of tokens and of
characters count as one group, since they are better together than apart.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from miniformer.config import TransformerConfig, UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import ModelSettings
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.model.wide_head.head import WideHead
from miniformer.training.tuning.wide_head.characters import fit_characters, propose_characters
from miniformer.training.tuning.wide_head.data import FittedGroup, FittedHead, WideData
from miniformer.training.tuning.wide_head.linear import (
    DEFAULT_STRENGTH,
    LinearProblem,
    Selection,
    select_strength,
)
from miniformer.training.tuning.wide_head.matrix import FeatureMatrix, compute_block
from miniformer.training.tuning.wide_head.ngrams import (
    MAX_COUNTS,
    fit_ngrams,
    fit_second_text,
    propose_ngrams,
)
from miniformer.training.tuning.wide_head.overlap import fit_overlap, propose_overlap
from miniformer.training.tuning.wide_head.rbf import GAMMAS, NUM_LANDMARKS, KernelGroup
from miniformer.training.tuning.wide_head.series import fit_dense, propose_series

_MAX_TOKENS = 5_000_000  # with more, a Transformer learns them by itself
_MAX_SAMPLE = 4000  # examples for the choice of groups; with few, n-grams look worse than they are
_MAX_GROUPS = 3
_MIN_GAIN = 0.02  # share of the held-out loss by which another group must lower it

Group = dict[str, Any]
# For each type of features the function that fits them; None: the data has no such features.
_FITS: dict[str, Callable[[Group, TransformerConfig, WideData], Any]] = {
    "ngrams": fit_ngrams,
    "second_text": fit_second_text,
    "characters": fit_characters,
    "numbers": fit_dense,
    "statistics": fit_dense,
    "kernels": fit_dense,
    "overlap": fit_overlap,
}


def fit_wide_head(
    config: ModelSettings,
    model_config: TransformerConfig,
    data: MiniFormerDataModule,
    console: Console,
) -> FittedHead | None:
    """Fits a wide head to the training data, and prints its held-out metrics; None: no head.

    Args:
        config: settings of the run.
        model_config: the model's config so far; if it has groups of features, these are fitted.
        data: the datamodule, set up.
        console: output.

    Raises:
        UserError: a wide head is requested where there can be none.
    """
    if not _is_possible(config, model_config, data):
        return None
    if data.column_total("train", "word_hashes") is not None:
        from miniformer.training.tuning.wide_head.chain import fit_chain_head

        return fit_chain_head(model_config, data, console)
    started = time.perf_counter()
    wide_data = WideData(model_config, data)
    labels = wide_data.labels()
    proposals = model_config.wide_head or propose(model_config, wide_data)
    fitted = (_fit_group(settings, model_config, wide_data) for settings in proposals)
    groups = [group for group in fitted if group is not None]
    if not groups:
        return None
    if model_config.wide_head is None:
        size = min(NUM_LANDMARKS, len(wide_data.lengths))
        groups += [
            KernelGroup({"type": "rbf", "size": size, "gamma": gamma}, group)
            for group in groups
            if _has_kernel_model(group)
            for gamma in GAMMAS
        ]
    if model_config.wide_head is None:
        groups, selection = select_groups(groups, model_config, wide_data.task, labels)
    else:
        selection = _select(groups, model_config, wide_data.task, labels)
    features = FeatureMatrix([group.block for group in groups])
    problem = LinearProblem(model_config, wide_data.task, features, labels)
    if selection is None:
        weight, bias = problem.solve(DEFAULT_STRENGTH, problem.zeros())
    else:
        weight, bias = problem.solve(selection.strength, selection.solution)
    settings = [group.settings for group in groups]
    head = WideHead(dataclasses.replace(model_config, wide_head=settings))
    for module, group in zip(head.groups, groups, strict=True):
        module.load_state_dict(group.module.state_dict())
    parts = torch.split(weight, [group.module.size for group in groups])
    own_parts = zip(groups, parts, strict=True)
    head.weight.copy_(torch.cat([group.own_weight(part) for group, part in own_parts]))
    head.bias.copy_(bias)
    # Until the first validation has shown what the Transformer adds.
    head.mix.copy_(torch.tensor([0.0, 1.0]))
    head.next_mix.copy_(head.mix)
    seconds, evidence = time.perf_counter() - started, ""
    if selection is not None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in selection.metrics.items())
        evidence = f"; on a fifth of the training data, held out: {values}"
    summary = " + ".join(f"{len(part):,} {name}" for name, part in _columns(groups).items())
    console.print(f"wide head: {summary}, fitted in {seconds:.0f} s{evidence}")
    return FittedHead(ResolvedSetting("wide_head", "on", summary), settings, head.state_dict())


def propose(config: TransformerConfig, data: WideData) -> list[Group]:
    """Groups of features for the inputs of the data, before their fit."""
    if config.input_dim is not None:
        return propose_series(config, data)
    return [
        *propose_ngrams(config, data),
        *propose_characters(config, data),
        *propose_overlap(config, data),
    ]


def _has_kernel_model(group: FittedGroup) -> bool:
    """True if an RBF kernel of the group's features is worth a trial."""
    settings = group.settings
    if settings["type"] != "ngrams":
        return settings["type"] in ("numbers", "statistics", "overlap")
    has_own_places = settings["positions"] and settings["length"] == 1
    return bool(settings.get("counts") or has_own_places) and group.module.size <= MAX_COUNTS


def _columns(groups: list[FittedGroup]) -> dict[str, range]:
    """Columns of each type of features, counted from 0."""
    sizes: dict[str, int] = {}
    for group in groups:
        name = group.settings["type"]
        sizes[name] = sizes.get(name, 0) + group.module.size
    return {name: range(size) for name, size in sizes.items()}


def _is_possible(
    config: ModelSettings, model_config: TransformerConfig, data: MiniFormerDataModule
) -> bool:
    """True if the run has a wide head; see `fit_wide_head`."""
    if config.wide_head == "off":
        return False
    tokens = data.num_tokens("train")
    if not (data.task.supports_wide_head and tokens and data.val_path is not None):
        if config.wide_head == "auto":
            return False
        raise UserError(
            "wide_head=on needs training data in memory, validation data, and a task with one "
            "output for each input, such as classification; leave it out"
        )
    if config.wide_head == "on" or model_config.wide_head is not None:
        return True
    return tokens <= _MAX_TOKENS and config.init_from is None and config.pretrain is None


def _fit_group(settings: Group, config: TransformerConfig, data: WideData) -> FittedGroup | None:
    if settings["type"] == "rbf":
        inner = _fit_group(settings["of"], config, data)
        return None if inner is None else KernelGroup(settings, inner)
    module = _FITS[settings["type"]](settings, config, data)
    if module is None:
        return None
    with torch.inference_mode():
        block = compute_block(module, data.inputs())
    return FittedGroup({**settings, "size": module.size}, module, block)


def select_groups(
    groups: list[FittedGroup], config: TransformerConfig, task: Any, labels: Batch
) -> tuple[list[FittedGroup], Selection | None]:
    """The groups whose linear model has the lowest held-out loss, found one after the other.

    Args:
        groups: candidates.
        config: of the model.
        task: has the loss.
        labels: of the training examples.

    Returns:
        The groups, and the strength of their fit; all groups and None for too few examples.
    """
    count = groups[0].block.shape[0]
    if len(groups) == 1 or count < 20:
        return groups, _select(groups, config, task, labels)
    # A sample suffices to compare groups.
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:_MAX_SAMPLE]
    labels_of_sample = {name: value[rows] for name, value in labels.items()}
    blocks = {id(group): group.rows(rows) for group in groups}

    def held_out(selected: list[FittedGroup]) -> float:
        matrix = FeatureMatrix([blocks[id(group)] for group in selected])
        selection = select_strength(config, task, matrix, labels_of_sample)
        assert selection is not None
        return selection.loss

    ranked = sorted(((held_out(bundle), bundle) for bundle in _bundles(groups)), key=lambda x: x[0])
    best, result = ranked[0]
    remaining = _best_variants([bundle for _, bundle in ranked])[1:]
    for _ in range(_MAX_GROUPS - 1):
        losses = [held_out([*result, *bundle]) for bundle in remaining]
        if not losses or not min(losses) < best * (1 - _MIN_GAIN):
            break
        best = min(losses)
        result = [*result, *remaining.pop(losses.index(best))]
    return result, _select(result, config, task, labels)


def _bundles(groups: list[FittedGroup]) -> list[list[FittedGroup]]:
    """Groups that are selected together: n-grams of tokens with those of characters, others alone.

    Adding the one to the other gains too little on a sample, and most of all on all examples.
    """
    characters = [group for group in groups if group.settings["type"] == "characters"]
    tokens = [group for group in groups if _is_plain_ngrams(group.settings)]
    bundle = tokens + characters if tokens and characters else []
    alone = [[group] for group in groups if not any(group is member for member in bundle)]
    return [bundle, *alone] if bundle else alone


def _is_plain_ngrams(settings: Group) -> bool:
    has_options = settings.get("positions") or settings.get("counts")
    return settings["type"] == "ngrams" and not has_options


def _best_variants(bundles: list[list[FittedGroup]]) -> list[list[FittedGroup]]:
    """The first of the groups that differ in `gamma` alone."""
    first: dict[str, list[FittedGroup]] = {}
    for bundle in bundles:
        settings = [{**group.settings, "gamma": None} for group in bundle]
        first.setdefault(str(settings), bundle)
    return list(first.values())


def _select(
    groups: list[FittedGroup], config: TransformerConfig, task: Any, labels: Batch
) -> Selection | None:
    return select_strength(config, task, FeatureMatrix([group.block for group in groups]), labels)
