"""RigL compared with its plain definition in loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.compression.sparse_training.rigl import RigL, drop_and_grow
from miniformer.config.sparse_training import SparseTrainingConfig


def plain(weight, gradient, mask, count):
    """Evci et al. 2020, algorithm 1, on lists."""
    active = [i for i, x in enumerate(mask) if x]
    dropped = sorted(active, key=lambda i: (abs(weight[i]), -i))[:count]
    retained = set(active) - set(dropped)
    others = [i for i in range(len(mask)) if i not in retained]
    grown = sorted(others, key=lambda i: (-abs(gradient[i]), i))[:count]
    return [i in retained or i in grown for i in range(len(mask))]


@pytest.mark.catches("rigl_drops_the_largest", "rigl_grows_trained_weights")
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
def test_drop_and_grow(seed, rows, columns, share):
    dice = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=dice) < 0.5
    weight = torch.randint(-3, 4, (rows, columns), generator=dice).float() * mask  # with ties
    gradient = torch.randint(-3, 4, (rows, columns), generator=dice).float()
    count = math.floor(share * int(mask.sum()))
    result = drop_and_grow(weight, gradient, mask, count)
    flat = [x.flatten().tolist() for x in (weight, gradient, mask)]
    assert result.flatten().tolist() == plain(*flat, count)
    assert int(result.sum()) == int(mask.sum())


@pytest.mark.catches("rigl_changes_masks_to_the_end")
def test_masks_change_every_interval_for_a_share_of_the_run():
    rigl = RigL(SparseTrainingConfig(interval=10, end=0.75), [], 0)
    due = [step for step in range(100) if rigl.is_due(step, step / 100)]
    assert due == [10, 20, 30, 40, 50, 60, 70]
