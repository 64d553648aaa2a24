"""Reading of weights, tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from miniformer import Transformer
from miniformer.config import UserError
from miniformer.model import weight_file
from miniformer.model.weight_file import assign_weights, empty_model, open_weights
from tests.kit import run_python, tiny_model

TENSORS = {
    "a.weight": torch.randn(3, 4),
    "a.half": torch.randn(5, 2).bfloat16(),
    "number": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "bytes": torch.arange(6, dtype=torch.uint8).view(2, 3),
    "flags": torch.tensor([True, False]),
}


def test_tensors_are_those_of_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    expected = load_file(path)
    with open_weights(path) as sources:
        assert sources.keys() == expected.keys()
        tensors = {name: source.read() for name, source in sources.items()}
        again = sources["a.weight"].read()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name
        assert (tuple(tensor.shape), tensor.dtype) == sources[name][:2]
    again.zero_()  # memory of its own
    assert torch.equal(tensors["a.weight"], expected["a.weight"])


def test_file_that_is_replaced_is_read_to_its_end(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    with open_weights(path) as sources:
        first = sources["a"].read()
        save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, tmp_path / "new")
        (tmp_path / "new").replace(path)
        assert torch.equal(first, sources["b"].read())


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_broken_files(tmp_path, size):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="not a readable safetensors file"), open_weights(path):
        pass
    path.unlink()
    with pytest.raises(UserError, match="no such file; a model directory needs its weights"):
        open_weights(path).__enter__()


@pytest.mark.catches("weights_of_a_part_are_lost")
@pytest.mark.parametrize("part_bytes", [1, 3_000, 2**25])
def test_parts_of_any_size_give_the_same_model(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(weight_file, "_PART_BYTES", part_bytes)
    model = tiny_model()
    model.save_pretrained(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    loaded = Transformer.from_pretrained(tmp_path)
    assert {
        name: torch.equal(x, expected[name]) for name, x in loaded.state_dict().items()
    } == dict.fromkeys(expected, True)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_modules_get_their_tensors_at_once(tmp_path, monkeypatch):
    """A module with its own rule for loading finds all of its tensors."""
    monkeypatch.setattr(weight_file, "_PART_BYTES", 1)
    names_of_calls = []

    class Part(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            names_of_calls.append({f"{prefix}weight", f"{prefix}bias"} & state_dict.keys())
            super()._load_from_state_dict(state_dict, prefix, *args)

    model = nn.Sequential(Part(2, 3), Part(3, 1))
    save_file(model.state_dict(), tmp_path / "w")
    with open_weights(tmp_path / "w") as sources:
        assign_weights(model, sources)
    assert {"0.weight", "0.bias"} in names_of_calls
    assert {"1.weight", "1.bias"} in names_of_calls
    assert not any(len(names) == 1 for names in names_of_calls)


def test_model_with_values_outside_of_its_file_is_made_with_memory():
    class Part(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("table", torch.ones(2), persistent=False)

    assert not empty_model(Part).table.is_meta
    assert not empty_model(Part).weight.is_meta
    assert empty_model(lambda: nn.Linear(2, 2)).weight.is_meta


class Slopes(nn.Module):
    """Keeps a tensor in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.slopes = [torch.arange(3.0)]


class Scaled(nn.Module):
    """Reads a tensor when it is made."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.scale = torch.linspace(0, 1, 3).sum().item()


@pytest.mark.catches("plain_tensors_of_parts_have_no_memory")
def test_parts_with_tensors_of_their_own_are_made_with_memory():
    assert torch.equal(empty_model(Slopes).slopes[0], torch.arange(3.0))
    assert empty_model(Scaled).scale == 1.5
    assert empty_model(lambda: nn.Linear(2, 2)).weight.is_meta

    def fails():
        raise ValueError("of the part")

    with pytest.raises(ValueError, match="of the part"):
        empty_model(fails)


def test_loading_draws_no_random_numbers(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    state = torch.get_rng_state()
    Transformer.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


MEASURE = """
import json, sys
from pathlib import Path
from miniformer import Transformer

def status(key):
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) * 1024

Transformer.from_pretrained(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = Transformer.from_pretrained(sys.argv[2])
size = sum(x.nbytes for x in model.state_dict().values())
print(json.dumps((status("VmHWM") - before) / size))
"""


@pytest.mark.catches("weights_of_a_file_are_read_twice")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("to", [None, "int4"])
def test_memory_of_loading(tmp_path, to):
    """The peak is 1.2 times the loaded weights at most."""
    import miniformer

    large = tiny_model(d_model=512, n_heads=8, n_layers=8, vocab_size=512)
    for name, model in (("tiny", tiny_model(d_model=64)), ("large", large)):
        if to is None:
            model.save_pretrained(tmp_path / name)
        else:
            miniformer.quantize(model, tmp_path / name, to=to)
    result = run_python("-c", MEASURE, tmp_path / "tiny", tmp_path / "large")
    assert result.returncode == 0, result.stderr
    assert 0.9 < json.loads(result.stdout) <= 1.2
