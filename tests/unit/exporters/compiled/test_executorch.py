"""ExecuTorch reads what is written and computes the same, up to the stated sizes."""

import json

import pytest
import torch

import miniformer
from miniformer import UserError
from miniformer.exporters.compiled import destinations
from miniformer.exporters.compiled.executorch import make_format
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import read_source
from miniformer.model.transformer import Transformer

PROMPT = [3, 1, 4, 1, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 33}, "max_length must be from 2 to max_seq_len=32, not 33"),
        ({"max_length": 1}, "max_length must be from 2 to max_seq_len=32, not 1"),
        ({"max_batch": 0}, "max_batch must be at least 1, not 0"),
    ],
)
def test_sizes_that_the_model_does_not_take_are_refused(directories, tmp_path, options, message):
    export = destinations.export_executorch.__wrapped__  # without the check of packages
    with pytest.raises(UserError, match=message):
        export(directories / "decoder", str(tmp_path / "out"), **options)
    with pytest.raises(UserError, match="to: executorch takes no encoder-decoder model; onnx"):
        export(directories / "seq2seq", str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.catches("executorch_has_other_limits")
def test_limits_are_stored_and_bound_the_program(directories, monkeypatch):
    form = make_format(3, 8)
    assert form.limits == {"batch": 3, "length": 8}
    calls = []
    monkeypatch.setattr(
        torch.export, "export", lambda *arguments, dynamic_shapes, **_: calls.append(dynamic_shapes)
    )
    (program,) = make_programs(read_source(directories / "classifier"))
    form.export(program)
    (((ids, mask),),) = calls
    assert ids == mask
    assert [(ids[axis].min, ids[axis].max) for axis in (0, 1)] == [(1, 3), (1, 8)]


@pytest.fixture(scope="module")
def written(directories, tmp_path_factory):
    """Exports a model; returns its programs as functions of tensors."""
    runtime = pytest.importorskip("executorch.runtime")
    folder = tmp_path_factory.mktemp("executorch")

    def written(name, **options):
        text = miniformer.export(directories / name, folder / name, to="executorch", **options)
        assert "largest difference" in text
        about = json.loads((folder / name / "export.json").read_text())
        programs = {}
        for part, file in about["files"].items():
            method = runtime.Runtime.get().load_program(folder / name / file).load_method("forward")
            programs[part] = lambda *inputs, method=method: [
                value.clone() for value in method.execute(list(inputs))
            ]
        return programs, about

    return written


@pytest.mark.slow
@pytest.mark.timeout(1200)
@torch.no_grad()
def test_executorch_decodes_like_the_model(written, directories):
    programs, about = written("decoder", max_length=16)
    model = Transformer.from_pretrained(directories / "decoder").eval()
    past = [torch.zeros(1, heads, 1, width) for heads, width in about["past"]]
    ids, mask = torch.tensor([PROMPT]), torch.tensor([[0] + [1] * len(PROMPT)])
    tokens = []
    for _ in range(7):
        logits, *past = programs["decoder"](ids, mask, *past, torch.tensor([ids.shape[1] - 1]))
        ids = logits.argmax(-1)
        mask = torch.cat((mask, torch.ones_like(ids)), 1)
        tokens.append(int(ids))
    assert tokens == model.generate([PROMPT], 7, temperature=0)[0][-7:]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_executorch_classifies_like_the_model(written, classify):
    programs, _ = written("classifier")
    for length in (1, 9, 32):
        ids = torch.randint(0, 258, (1, length))
        (logits,) = programs["model"](ids, torch.ones_like(ids))
        torch.testing.assert_close(logits, classify(ids), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_several_rows_are_refused_when_executorch_fixes_their_number(directories, tmp_path):
    """Lowering fixes the number of rows of a classifier; a file that needs just it is no use."""
    pytest.importorskip("executorch.runtime")
    with pytest.raises(UserError, match="Sizes that work are a max_batch of 1"):
        miniformer.export(directories / "classifier", tmp_path / "o", to="executorch", max_batch=4)
    assert not list(tmp_path.iterdir())
