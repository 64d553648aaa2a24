"""Checkpoints on disk."""

import pytest
import torch

from miniformer.config import UserError
from miniformer.training.resume import storage


@pytest.mark.catches("older_state_goes_before_the_new_one_is_whole")
def test_checkpoint_failure_keeps_the_earlier_one(tmp_path, monkeypatch):
    first = storage.write_checkpoint(tmp_path, 3, {"w": torch.ones(2)}, {"step": 3})

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(UserError, match=r"No space left on device; the earlier one, .*is complete"):
        storage.write_checkpoint(tmp_path, 4, {"w": torch.zeros(2)}, {"step": 4})
    assert storage.latest_checkpoint(tmp_path) == first
    weights = {"w": torch.empty(2)}
    storage.load_checkpoint_tensors(first, weights)
    assert weights["w"].tolist() == [1.0, 1.0]
    assert storage.read_checkpoint_metadata(first) == {"step": 3}
