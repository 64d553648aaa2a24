"""Optimizer roles: Muon, AdamW or frozen, by module and parameter."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from miniformer.config import UserError
from miniformer.training.distributed import strategies
from miniformer.training.lit_module import LossModule, MiniFormerLitModule
from miniformer.training.optim.muon import Muon, orthogonalize
from miniformer.training.optim.optimizers import adamw, muon
from miniformer.training.optim.roles import freeze_parameters, optimizer_roles
from miniformer.training.optim.weight_averaging import CheckpointAverage, Ema
from tests.kit import tiny_model


def test_default_roles():
    roles = optimizer_roles(model := tiny_model(tie_embeddings=False))
    assert list(roles) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and name.startswith("layers.")
        assert roles[name] == ("muon" if is_matrix else "adamw"), name


@pytest.mark.catches("role_of_a_module_overrides_that_of_its_parameter")
def test_role_of_a_parameter_counts_before_that_of_its_modules():
    model = tiny_model()
    model.optimizer_role = "frozen"
    model.layers[0].optimizer_role = "adamw"
    model.layers[0].attention.o_proj.weight.optimizer_role = "muon"
    model.layers[1].attention.q_proj.bias.optimizer_role = "adamw"
    model.layers[0].attention.k_proj.weight.requires_grad_(False)
    roles = optimizer_roles(model)
    assert roles["layers.0.attention.o_proj.weight"] == "muon"
    assert roles["layers.0.attention.k_proj.weight"] == "frozen"
    assert roles["layers.1.attention.q_proj.bias"] == "adamw"
    others = {
        name: role
        for name, role in roles.items()
        if name not in ("layers.0.attention.o_proj.weight", "layers.0.attention.k_proj.weight")
        and name != "layers.1.attention.q_proj.bias"
    }
    for name, role in others.items():
        assert role == ("adamw" if name.startswith("layers.0.") else "frozen"), name


@pytest.mark.catches("frozen_parameters_are_trained")
@pytest.mark.parametrize("make", [muon, adamw])
def test_frozen_parameters_have_no_optimizer_state(make):
    model = tiny_model()
    model.embedding.optimizer_role = "frozen"
    model.layers[0].feed_forward.optimizer_role = "adamw"
    freeze_parameters(model)
    optimizer = make(model, lr=0.1, weight_decay=0.0)
    before = model.embedding.weight.clone()
    ids = torch.randint(0, 31, (2, 5))
    model(ids).square().sum().backward()
    assert model.embedding.weight.grad is None
    optimizer.step()
    assert torch.equal(before, model.embedding.weight)
    assert model.embedding.weight not in optimizer.state
    if make is muon:
        layers = model.layers
        assert "momentum" in optimizer.state[layers[0].attention.q_proj.weight]
        assert "exp_avg" in optimizer.state[layers[0].feed_forward.up_proj.weight]


def test_lit_module_freezes_by_role():
    model = tiny_model()
    model.layers.optimizer_role = "frozen"
    MiniFormerLitModule(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "layers." not in name}


def set_role(model, role, *, name=""):
    target = model.get_parameter(name) if name else model
    target.optimizer_role = role


@pytest.mark.parametrize(
    ("role", "name", "message"),
    [
        ("frozen", "", "no parameter of the model is trained: all have optimizer_role=frozen"),
        ("adam", "embedding.weight", "embedding.weight: unknown optimizer_role 'adam' "
         r"\(did you mean 'adamw'\?\); known: muon, adamw, frozen"),
        ("muon", "final_norm.weight", r"final_norm.weight: optimizer_role=muon is for matrices, "
         r"not for \[16\]; set adamw"),
    ],
)  # fmt: skip
def test_invalid_role_messages(role, name, message):
    model = tiny_model(d_model=16, n_heads=2)
    set_role(model, role, name=name)
    with pytest.raises(UserError, match=message):
        freeze_parameters(model)


@pytest.mark.catches("stacked_matrices_are_left_to_adamw")
def test_muon_updates_each_matrix_of_a_stack_separately():
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 8, 24))
    singles = [nn.Parameter(matrix.detach().clone()) for matrix in stack]
    gradient = torch.randn(3, 8, 24)
    stack.grad = gradient.clone()
    for single, its_gradient in zip(singles, gradient, strict=True):
        single.grad = its_gradient.clone()
    options = {"kind": "muon", "weight_decay": 0.1}
    Muon([{"params": [stack], **options}], lr=0.1).step()
    Muon([{"params": singles, **options}], lr=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack([*singles]).detach())
    assert orthogonalize(gradient).shape == gradient.shape


@pytest.mark.catches("frozen_weights_are_averaged")
def test_frozen_weights_are_not_averaged():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model.register_buffer("table", torch.arange(3))
    model[0].weight.requires_grad_(False)
    ema, average = Ema(model, 0.9), CheckpointAverage(model, 2)
    ema.state_tensors()
    for value in (1.0, 2.0):
        with torch.no_grad():
            model[1].weight.fill_(value)
        average.add()
    model[0].weight.fill_(7.0)  # as loading does
    ema.update()
    assert list(ema.state_tensors()) == ["1.weight"]
    assert list(average.state_tensors()) == ["0.1.weight", "1.1.weight"]
    mean = average.mean()
    assert torch.equal(mean["1.weight"], torch.full((2, 2), 1.5))
    assert torch.equal(mean["0.weight"], torch.full((2, 2), 7.0))
    assert torch.equal(mean["table"], torch.arange(3))


@pytest.mark.catches("sharding_loses_roles")
def test_roles_of_parameters_survive_sharding(tmp_path):
    import torch.distributed as dist
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.device_mesh import init_device_mesh

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = tiny_model()
        model.layers[0].attention.q_proj.weight.optimizer_role = "adamw"
        model.embedding.weight.requires_grad_(False)
        module = SimpleNamespace(
            loss_module=LossModule(model, None),
            trainer=SimpleNamespace(strategy=ModelParallelStrategy()),
            device_mesh={"data_parallel": init_device_mesh("cpu", (1,))},
        )
        before = optimizer_roles(model)
        strategies.apply_fsdp(module)
        assert optimizer_roles(model) == before
        assert before["layers.0.attention.q_proj.weight"] == "adamw"
        assert before["embedding.weight"] == "frozen"
    finally:
        dist.destroy_process_group()
