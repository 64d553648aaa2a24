"""`.pt2` programs, loaded where this package cannot be imported."""

import json
import sys

import pytest
import torch

import miniformer
from miniformer.exporters.compiled.flat import FlatView
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import read_source
from miniformer.model.transformer import Transformer
from tests.kit import run_python

# Greedy tokens of prompts that are padded on the left, and the logits of the first of them.
DECODE = """
def decode_greedily(folder, prompts, num_tokens):
    with open(folder + "/export.json") as file:
        names = json.load(file)["names"]["decoder"]["inputs"]
    program = torch.export.load(folder + "/decoder.pt2")
    examples = dict(zip(names, program.example_inputs[0]))
    decode = program.module()
    longest, rows = max(map(len, prompts)), len(prompts)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest + 1 - len(row)) + [1] * len(row) for row in prompts])
    past = [
        torch.zeros(rows, examples[name].shape[1], 1, examples[name].shape[3])
        for name in names if name.startswith("past_key_values")
    ]
    first, tokens = None, []
    for _ in range(num_tokens):
        logits, *past = decode(ids, mask, *past, torch.tensor([ids.shape[1] - 1]))
        first = logits if first is None else first
        ids = logits.argmax(-1)
        mask = torch.cat((mask, torch.ones_like(ids)), 1)
        tokens.append(ids)
    return first[:, -1].tolist(), torch.cat(tokens, 1).tolist()
"""
PROCESS = f"""
import json, sys
sys.modules["miniformer"] = None
import torch
{DECODE}
print(json.dumps(decode_greedily(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))))
"""
CLASSIFY = """
import json, sys
sys.modules["miniformer"] = None
import torch
model = torch.export.load(sys.argv[1] + "/model.pt2").module()
ids = torch.tensor(json.loads(sys.argv[2]))
print(json.dumps(model(ids, torch.ones_like(ids))[0].tolist()))
"""
PROMPTS = ([[3]], [[3, 1, 4, 1, 5, 9], [2], [6, 5]])


@pytest.fixture(scope="module")
def exported(directories, tmp_path_factory):
    """The folder of a decoder's program, and the text of its export."""
    folder = tmp_path_factory.mktemp("exported") / "decoder"
    return folder, miniformer.export(directories / "decoder", folder, to="pt2")


def child(code, *arguments):
    done = run_python("-c", code, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@torch.no_grad()
def check(directories, prompts, result):
    logits, tokens = result
    model = Transformer.from_pretrained(directories / "decoder").eval()
    expected = [model(torch.tensor([prompt]))[0, -1] for prompt in prompts]
    torch.testing.assert_close(torch.tensor(logits), torch.stack(expected), rtol=0, atol=1e-5)
    continued = model.generate(prompts, 7, temperature=0)
    assert tokens == [row[-7:] for row in continued]


@pytest.mark.catches("programs_have_one_batch_size")
def test_programs_take_any_number_of_rows(directories):
    programs = make_programs(read_source(directories / "decoder"))
    for program in programs:
        view = FlatView(program)
        sizes = zip(view.example_inputs(), view.dynamic_shapes(), strict=True)
        assert all(0 in shape for tensor, shape in sizes if tensor.dim() > 1)


def test_pt2_decodes_without_this_package(exported, directories, monkeypatch):
    prompts = PROMPTS[1]
    scope = {"json": json, "torch": torch}
    exec(DECODE, scope)
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "miniformer"]:
            patch.setitem(sys.modules, name, None)
        result = scope["decode_greedily"](str(exported[0]), prompts, 7)
    check(directories, prompts, result)


@pytest.mark.slow
def test_pt2_runs_in_a_process_without_this_package(exported, directories, classify, tmp_path):
    for prompts in PROMPTS:
        check(directories, prompts, child(PROCESS, exported[0], prompts, 7))
    miniformer.export(directories / "classifier", tmp_path / "classifier", to="pt2")
    for ids in ([[7]], [[1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2, 1]]):
        logits = child(CLASSIFY, tmp_path / "classifier", ids)
        torch.testing.assert_close(torch.tensor(logits), classify(ids), rtol=0, atol=1e-5)


@pytest.mark.catches("pt2_is_never_compared", "pt2_has_another_suffix")
def test_pt2_folder_has_programs_and_names(exported):
    folder, text = exported
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.pt2", "export.json"]
    names = json.loads((folder / "export.json").read_text())["names"]["decoder"]
    assert names["inputs"][:2] == ["input_ids", "attention_mask"]
    assert names["inputs"][-1] == "logits_to_keep"
    assert names["outputs"] == ["logits", "present.0.key", "present.0.value"]
    assert "compared with the model: the largest difference is" in text
