"""The run folder of restarted process groups."""

import itertools

import pytest
import torch

from miniformer.training.resume import restart_folder, storage


@pytest.mark.parametrize("trained", [False, True])
def test_restarts_resume_in_the_first_folder_with_a_checkpoint(tmp_path, monkeypatch, trained):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(restart_folder, "agent_store", lambda: store)

    def attempt():
        """The runs of a script with two runs of one name."""
        monkeypatch.setattr(restart_folder, "_RUN_COUNTER", itertools.count())
        return [restart_folder.RunFolder("run") for _ in range(2)]

    folders = [tmp_path / "run", tmp_path / "run-2"]
    for run, folder in zip(attempt(), folders, strict=True):
        assert run.find_existing() is None
        folder.mkdir()
        assert run.register(folder) == folder
    if trained:
        storage.write_checkpoint(folders[1], 3, {"w": torch.ones(2)}, {"step": 3})
    first, second = attempt()
    assert first.find_existing() is None
    assert second.find_existing() == (folders[1] if trained else None)
    assert [folder.exists() for folder in folders] == [False, trained]
    monkeypatch.setattr(restart_folder, "agent_store", lambda: None)  # not under torchrun
    (alone, _) = attempt()
    folders[0].mkdir()
    assert alone.register(folders[0]) == folders[0]
    assert alone.find_existing() is None
