import math
import subprocess
import sys

import pytest
import torch

from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.training.callbacks.grad_norms import GradientNorms
from tests.kit import environment, tiny_model


def with_gradients(model):
    """The model with random gradients of different sizes."""
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = (1 + i) * torch.randn_like(parameter)
    return model


def norm_of(model, *prefixes):
    """Gradient norm of the parameters with these prefixes, summed element by element."""
    total = 0.0
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes) and parameter.grad is not None:
            total += sum(value**2 for value in parameter.grad.double().flatten().tolist())
    return math.sqrt(total)


@pytest.mark.catches("layers_1_and_11_are_one")
def test_gradient_norms_of_layers():
    model = with_gradients(
        tiny_model(n_layers=12, tie_embeddings=False, position="learned", token_types=2)
    )
    norms = GradientNorms(model).compute()
    layers = [f"layers.{i}" for i in range(12)]
    assert list(norms) == [
        "embedding", "position", "type_embedding", *layers, "final_norm", "head",
    ]  # fmt: skip
    for group, norm in norms.items():
        assert norm == pytest.approx(norm_of(model, group + "."), rel=1e-5), group
    total = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert math.hypot(*norms.values()) == pytest.approx(float(total), rel=1e-5)


def test_gradient_norms_of_both_stacks():
    model = with_gradients(
        tiny_model(model=Seq2SeqTransformer, causal=False, source_vocab_size=9, head="dense_tanh")
    )
    norms = GradientNorms(model).compute()
    assert list(norms) == [
        "embedding", "source_embedding",
        "encoder.layers.0", "encoder.layers.1", "encoder.final_norm",
        "decoder.layers.0", "decoder.layers.1", "decoder.final_norm", "head",
    ]  # fmt: skip
    for group, norm in norms.items():
        assert norm == pytest.approx(norm_of(model, group + "."), rel=1e-5), group


def test_gradient_norms_omit_parameters_without_gradient():
    model = with_gradients(tiny_model())
    grad_norms = GradientNorms(model)
    assert "head" not in grad_norms.group_names  # tied: its weight is the embedding's
    model.embedding.weight.grad = None
    model.layers[0].attention.q_proj.weight.grad = None
    norms = grad_norms.compute()
    assert list(norms) == ["layers.0", "layers.1", "final_norm"]
    assert norms["layers.0"] == pytest.approx(norm_of(model, "layers.0."), rel=1e-5)
    model.zero_grad()
    assert grad_norms.compute() == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gradient_norms_are_computed_in_float32(dtype):
    model = with_gradients(tiny_model().to(dtype))
    model.final_norm.float()  # a model of two types
    for name, norm in GradientNorms(with_gradients(model)).compute().items():
        assert norm == pytest.approx(norm_of(model, name + "."), rel=1e-5)


def test_gradient_norm_names_of_other_models():
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model = torch.nn.ModuleDict({"stem": torch.nn.Linear(2, 2), "h": inner})
    assert GradientNorms(model).group_names == ["stem", "h.0", "h.1"]
    assert GradientNorms(torch.nn.ModuleDict({"_orig_mod": tiny_model()})).group_names == [
        "embedding", "layers.0", "layers.1", "final_norm",
    ]  # fmt: skip


SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from miniformer.training.callbacks.grad_norms import GradientNorms

store = dist.FileStore(sys.argv[1], 2)
dist.init_process_group("gloo", store=store, rank=int(sys.argv[2]), world_size=2)
mesh = init_device_mesh("cpu", (2,))
model = torch.nn.ModuleDict({"head": torch.nn.Linear(1, 4, bias=False)})
whole = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
weight = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
weight.grad = distribute_tensor(whole, mesh, [Shard(0)])
model["head"].weight = weight
print(GradientNorms(model).compute()["head"])
dist.destroy_process_group()
"""


def test_gradient_norms_of_sharded_gradients(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(tmp_path / "store"), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in range(2)
    ]
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert float(out) == pytest.approx(math.sqrt(1 + 4 + 9 + 16))
