"""`.pt2` programs, loaded in a process where this package cannot be imported."""

import json

import pytest
import torch

import miniformer
from miniformer.model.transformer import Transformer
from tests.kit import run_python

# Without `miniformer`: logits of prompts that are padded on the left, and greedy tokens.
DECODE = """
import json, sys
sys.modules["miniformer"] = None
import torch
folder, prompts, num_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
names = json.load(open(folder + "/export.json"))["names"]["decoder"]["inputs"]
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
print(json.dumps([first[:, -1].tolist(), torch.cat(tokens, 1).tolist()]))
"""
CLASSIFY = """
import json, sys
sys.modules["miniformer"] = None
import torch
model = torch.export.load(sys.argv[1] + "/model.pt2").module()
ids = torch.tensor(json.loads(sys.argv[2]))
print(json.dumps(model(ids, torch.ones_like(ids))[0].tolist()))
"""


@pytest.fixture(scope="module")
def exported(directories, tmp_path_factory):
    """A folder with the programs of each model; the tests compare them."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("decoder", "classifier"):
        miniformer.export(directories / name, folder / name, to="pt2", verify=False)
    return folder


def child(code, *arguments):
    done = run_python("-c", code, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@torch.no_grad()
@pytest.mark.catches("programs_have_one_batch_size")
@pytest.mark.parametrize("prompts", [[[3]], [[3, 1, 4, 1, 5, 9], [2], [6, 5]]])
def test_pt2_decodes_without_this_package(exported, directories, prompts):
    logits, tokens = child(DECODE, exported / "decoder", prompts, 7)
    model = Transformer.from_pretrained(directories / "decoder").eval()
    expected = [model(torch.tensor([prompt]))[0, -1] for prompt in prompts]
    torch.testing.assert_close(torch.tensor(logits), torch.stack(expected), rtol=0, atol=1e-5)
    continued = model.generate(prompts, 7, temperature=0)
    assert tokens == [row[-7:] for row in continued]


def test_pt2_classifies_without_this_package(exported, classify):
    for ids in ([[7]], [[1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2, 1]]):
        logits = child(CLASSIFY, exported / "classifier", ids)
        torch.testing.assert_close(torch.tensor(logits), classify(ids), rtol=0, atol=1e-5)


@pytest.mark.catches("pt2_is_never_compared", "pt2_has_another_suffix")
def test_pt2_folder_has_names_and_tokenizer(exported, directories, tmp_path):
    folder = exported
    assert sorted(path.name for path in (folder / "classifier").iterdir()) == [
        "export.json", "model.pt2", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    description = json.loads((folder / "classifier" / "export.json").read_text())
    assert description["names"] == {
        "model": {"inputs": ["input_ids", "attention_mask"], "outputs": ["logits"]}
    }
    assert description["task"]["classes"] == ["a", "b"]
    text = miniformer.export(directories / "series", tmp_path / "series", to="pt2")
    assert "compared with the model: the largest difference is" in text
