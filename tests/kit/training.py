"""Batches and a trainer for tests of training steps."""

import math
import types

import lightning as L
import torch


def labeled_batches(sizes, length=6):
    """Batches with very different numbers of labels, so that averaging averages would show."""
    torch.manual_seed(1)
    created = []
    for size, num_labels in sizes:
        ids = torch.randint(0, 31, (size, length + 1))
        labels = ids[:, 1:].clone()
        labels[:, num_labels:] = -100
        segments = (labels != -100).long()
        created.append({"input_ids": ids[:, :-1], "labels": labels, "segment_ids": segments})
    return created


def cpu_trainer(**options):
    """A Lightning trainer on one CPU that writes and prints nothing."""
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def bare_trainer(**fields):
    """Stands for a trainer in calls of a callback: these fields, and epochs without a limit."""
    loop = types.SimpleNamespace(max_batches=math.inf, _combined_loader=None)
    return types.SimpleNamespace(fit_loop=loop, **fields)
