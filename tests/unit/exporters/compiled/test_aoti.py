"""Compiled programs, and the C++ program of the folder: its tokens are those of `generate`."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

import miniformer
from miniformer import UserError
from miniformer.exporters.compiled import aoti
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import read_source
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

PROMPT = [3, 1, 4, 1, 5]


def test_aoti_without_a_compiler_is_refused(directories, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"aoti compiles C\+\+ and needs g\+\+ or clang\+\+"):
        miniformer.export(directories / "decoder", tmp_path / "out", to="aoti")
    assert not list(tmp_path.iterdir())


@pytest.mark.catches("example_is_not_written")
def test_aoti_folder_has_the_example_of_the_model(directories, tmp_path):
    calls = {"decoder": "decoder.pt2", "seq2seq": "encoder.pt2", "classifier": "model.pt2"}
    for name in (*calls, "series"):
        (tmp_path / name).mkdir()
        aoti.FORMAT.finish(make_programs(read_source(directories / name)), tmp_path / name)
    assert not list((tmp_path / "series").iterdir())  # its inputs are vectors
    for name, file in calls.items():
        assert {"main.cpp", "CMakeLists.txt", "README.md"} == {*map(str, _names(tmp_path / name))}
        assert f"/{file}" in (tmp_path / name / "main.cpp").read_text()


def _names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestProgram:
    """Programs that are compiled with cmake against torch."""

    def run(self, folder, *arguments):
        """The numbers that the program prints."""
        if not (folder / "build" / "main").exists():
            command = (folder / "README.md").read_text().partition("\n    ")[2].partition("\n")[0]
            subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True)
        command = [folder / "build" / "main", folder, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_decoder(self, directories, tmp_path):
        text = miniformer.export(directories / "decoder", tmp_path / "out", to="aoti")
        assert "greedy tokens are equal" in text
        assert len((tmp_path / "out" / "main.cpp").read_text().splitlines()) <= 60
        model = Transformer.from_pretrained(directories / "decoder").eval()
        tokens = self.run(tmp_path / "out", 9, ",".join(map(str, PROMPT)))
        assert tokens == model.generate([PROMPT], 9, temperature=0)[0][-9:]

    @torch.no_grad()
    def test_seq2seq(self, directories, tmp_path):
        miniformer.export(directories / "seq2seq", tmp_path / "out", to="aoti")
        model = Seq2SeqTransformer.from_pretrained(directories / "seq2seq").eval()
        ids = [[2]]
        for _ in range(6):
            logits = model(torch.tensor([PROMPT]), torch.tensor(ids))
            ids[0].append(int(logits[0, -1].argmax()))
        assert self.run(tmp_path / "out", 6, 2, ",".join(map(str, PROMPT))) == ids[0][1:]

    def test_classifier(self, directories, classify, tmp_path):
        miniformer.export(directories / "classifier", tmp_path / "out", to="aoti")
        logits = self.run(tmp_path / "out", ",".join(map(str, PROMPT)))
        expected = classify([PROMPT])[0]
        np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-5)
