"""Folders of runs."""

import pytest

from miniformer.training.setup.run_folder import create_run_folder


@pytest.mark.catches("run_overwrites_the_one_before")
def test_run_folders_are_unique(tmp_path):
    folders = [create_run_folder(tmp_path / "a" / "runs", "name") for _ in range(3)]
    assert [folder.name for folder in folders] == ["name", "name-2", "name-3"]
    assert all(folder.is_dir() for folder in folders)
