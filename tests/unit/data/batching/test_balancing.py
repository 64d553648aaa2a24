"""Balanced sampling draws exact shares in a reproducible order."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.data.batching.balancing import resample_rows
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.multilabel_classification import MultiLabelClassification

BYTES = Tokenizer.train("byte", [])


@pytest.mark.catches("rows_are_drawn_independently")
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 99))
def test_resample_rows_draws_floor_or_ceiling_of_each_weight(groups, power, seed):
    groups = np.array(groups)
    sizes = np.bincount(groups, minlength=5)
    weights = np.maximum(sizes, 1.0)[groups] ** -power
    rows = resample_rows(groups, weights, np.random.default_rng(seed))
    assert len(rows) == len(groups)
    expected = weights * len(groups) / weights.sum()
    counts = np.bincount(rows, minlength=len(groups))
    assert (np.abs(counts - expected) < 1 + 1e-9).all(), "a row"
    of_groups = np.bincount(groups[rows], minlength=5)
    assert (np.abs(of_groups - np.bincount(groups, expected, minlength=5)) < 1 + 1e-9).all(), (
        "a group"
    )
    again = resample_rows(groups, weights, np.random.default_rng(seed))
    assert (rows == again).all()


def test_resample_rows_draws_in_proportion_on_average():
    groups, weights = np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 1.0, 2.5])
    counts = np.zeros(4)
    for seed in range(2000):
        rows = resample_rows(groups, weights, np.random.default_rng(seed))
        counts += np.bincount(rows, minlength=4)
    assert counts / 2000 == pytest.approx(weights * 4 / weights.sum(), abs=0.05)


RECORDS = [{"input": f"{n:03}", "label": "rare" if n % 10 == 0 else "often"} for n in range(60)]


def module(task, records=RECORDS, **options):
    return MiniFormerDataModule(
        records, val_path=records, task=task, tokenizer=BYTES, batch_size=4, seq_len=16, **options
    )


def served(loader):
    """Records and labels of each batch of an epoch."""
    return [(batch["inputs"].tolist(), batch["labels"].tolist()) for batch in loader]


@pytest.mark.catches("balanced_sampling_is_off")
@pytest.mark.parametrize(("power", "share"), [(1.0, 0.5), (0.5, 0.25), (0.0, 0.1)])
def test_balanced_sampling_of_an_epoch(power, share):
    loader = module(Classification(balanced_sampling=power)).train_dataloader()
    epochs = [served(loader) for _ in range(3)]
    for epoch in epochs:
        labels = Counter(label for _, batch in epoch for label in batch)
        assert labels[1] == pytest.approx(60 * share, abs=1)  # sorted: often, rare
        assert sum(labels.values()) == 60
    assert epochs[0] != epochs[1]


@pytest.mark.catches("validation_is_resampled")
def test_balanced_sampling_leaves_validation_data_as_they_are():
    loader = module(Classification(balanced_sampling=1.0)).val_dataloader()
    inputs = [tuple(row) for batch, _ in served(loader) for row in batch]
    assert len(inputs) == len(set(inputs)) == 60


@pytest.mark.catches("resampling_depends_on_earlier_batches")
def test_balanced_sampling_resumes_at_any_batch():
    """The batches after a position are the same in a new process that starts there."""
    loader = module(Classification(balanced_sampling=0.7), seed=3).train_dataloader()
    batches = [batch for _ in range(2) for batch in loader]
    for position in (0, 5, len(batches) // 2 + 3):
        data = module(Classification(balanced_sampling=0.7), seed=3)
        data.load_state_dict(batches[position]["about"]["state"])
        resumed = data.train_dataloader()
        later = [batch for _ in range(2) for batch in resumed]
        for expected, actual in zip(batches[position + 1 :], later, strict=False):
            assert expected["inputs"].tolist() == actual["inputs"].tolist()
            assert expected["labels"].tolist() == actual["labels"].tolist()


def test_balanced_sampling_names_the_records_of_a_batch():
    loader = module(Classification(balanced_sampling=1.0)).train_dataloader()
    for batch in loader:
        rows = loader.record_indices(batch["about"]["place"])
        texts = {tuple(row) for row in batch["inputs"].tolist()}
        assert texts == {(BYTES.eos_id, *BYTES.encode(RECORDS[n]["input"])) for n in rows}


def test_balanced_sampling_of_several_labels_is_by_the_rarest():
    records = [
        {"input": f"{n:02}", "labels": [["a"], ["a", "b"], []][0 if n > 14 else 1 if n > 5 else 2]}
        for n in range(40)
    ]
    loader = module(MultiLabelClassification(balanced_sampling=1.0), records).train_dataloader()
    groups = Counter(tuple(row) for _, batch in served(loader) for row in batch)
    # 34 records have a and 9 have b: 25 of weight 1 / 34, 9 of 1 / 9, 6 without labels of 1 / 34.
    total = 25 / 34 + 1 + 6 / 34
    assert groups[1, 1] == pytest.approx(40 / total, abs=1)
    assert groups[1, 0] == pytest.approx(40 * 25 / 34 / total, abs=1)
