"""Programs in the operations that TVM has, and its libraries, which compute the same."""

import json

import pytest
import torch

import miniformer
from miniformer.exporters.compiled import tvm as exporter
from miniformer.model.transformer import Transformer

PROMPT = [3, 1, 4, 1, 5]


class Operations(torch.nn.Module):
    """The operations of masks that TVM lacks."""

    def forward(self, mask, numbers):
        return (
            mask.cumsum(1),
            mask.sum(1),
            mask.any(-1, keepdim=True),
            numbers.clamp_min(2),
            numbers.clamp(1, 3),
            (mask.cumsum(1) - 1).clamp(max=1),
        )


@pytest.mark.catches("tvm_lacks_sums_of_booleans")
def test_operations_that_tvm_lacks_are_replaced():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    numbers = torch.tensor([[0, 2, 9], [1, 3, -4]])
    program = torch.export.export(Operations(), (mask, numbers), strict=False)
    replaced = exporter.decompose(program)
    for actual, expected in zip(
        replaced.module()(mask, numbers), Operations()(mask, numbers), strict=True
    ):
        assert torch.equal(actual, expected)
    for node in replaced.graph.nodes:
        name = str(node.target)
        assert not name.startswith(("aten.clamp", "aten.any")), name
        if name.startswith(("aten.sum", "aten.cumsum")):
            assert node.args[0].meta["val"].dtype != torch.bool


def test_tvm_without_a_linker_is_refused(directories, tmp_path, monkeypatch):
    from miniformer.exporters.compiled import destinations

    monkeypatch.setattr(destinations.shutil, "which", lambda name: None)
    with pytest.raises(miniformer.UserError, match="tvm links libraries and needs g"):
        destinations.export_tvm.__wrapped__(directories / "decoder", str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@torch.no_grad()
def test_tvm_decodes_like_the_model(directories, tmp_path):
    tvm = pytest.importorskip("tvm")
    text = miniformer.export(directories / "decoder", tmp_path / "out", to="tvm")
    assert "greedy tokens are equal" in text
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    library = tvm.runtime.load_module(str(tmp_path / "out" / "decoder.so"))
    decode = tvm.relax.VirtualMachine(library, tvm.cpu())["main"]
    past = [torch.zeros(1, heads, 1, width).numpy() for heads, width in about["past"]]
    ids, mask = torch.tensor([PROMPT]), torch.tensor([[0] + [1] * len(PROMPT)])
    model = Transformer.from_pretrained(directories / "decoder").eval()
    tokens = []
    for _ in range(7):
        inputs = [ids.numpy(), mask.numpy(), *past, torch.tensor([ids.shape[1] - 1]).numpy()]
        logits, *past = (x.numpy() for x in decode(*map(tvm.runtime.tensor, inputs)))
        ids = torch.from_numpy(logits).argmax(-1)
        mask = torch.cat((mask, torch.ones_like(ids)), 1)
        tokens.append(int(ids))
    assert tokens == model.generate([PROMPT], 7, temperature=0)[0][-7:]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["seq2seq", "classifier"])
def test_tvm_compares_other_models(directories, tmp_path, name):
    pytest.importorskip("tvm")
    text = miniformer.export(directories / name, tmp_path / "out", to="tvm")
    assert float(text.partition("difference is ")[2].partition(";")[0]) < 1e-5
