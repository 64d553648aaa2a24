"""Optimizers compared with those of torch and with their definitions."""

import copy
import inspect
import math
import re
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.optim.muon import (
    _NEWTON_SCHULZ_COEFFICIENTS,
    Muon,
    orthogonalize,
)
from miniformer.training.optim.optimizers import (
    adamw,
    check_optimizer_options,
    default_lr,
    muon,
    schedulefree,
)
from miniformer.training.optim.param_groups import build_param_groups
from tests.kit import tiny_model


def with_gradients(model, seed=0):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


@pytest.mark.catches("muon_only_scales")
@given(st.integers(2, 24), st.integers(2, 96), st.sampled_from([3, 4, 5]), st.integers(0, 99))
def test_orthogonalize_keeps_singular_vectors_and_equalizes_singular_values(
    rows, columns, steps, seed
):
    """Singular vectors stay; values go where each step's polynomial takes them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, columns, generator=generator)
    result = orthogonalize(x, steps).double()
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    rotated = u.mT @ result @ v.mT  # diagonal, if the vectors are the same
    values = rotated.diagonal(dim1=-2, dim2=-1)
    assert (rotated - torch.diag_embed(values)).abs().max() < 1e-3
    least = {3: 0.01, 4: 0.003, 5: 0.001}[steps]
    reached = s / s.norm(dim=-1, keepdim=True) >= least
    assert (values[reached] > 0.72).all()
    assert (values < 1.28).all()
    assert (values > 0).all()


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24), (24, 40)])
def test_orthogonalize_under_autocast_is_close_to_that_in_float64(shape):
    """The polynomials of singular values in float64; the products are in bfloat16."""
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    values = s / s.norm(dim=-1, keepdim=True)
    for a, b, c in _NEWTON_SCHULZ_COEFFICIENTS[3]:
        values = a * values + b * values**3 + c * values**5
    expected = u @ torch.diag_embed(values) @ v
    with torch.autocast("cpu", torch.bfloat16):
        result = orthogonalize(x)
    assert result.dtype == torch.float32
    error = (result - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.03  # float32 would be closer


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8), (12, 20)])
def test_orthogonalize_of_stacked_matrices_is_independent(shape):
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in x])
    torch.testing.assert_close(orthogonalize(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_muon_matches_torch_except_for_polynomials(shape):
    """The polynomials differ, so that only directions and norms are compared."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    optimizer = Muon([{"params": [ours], "kind": "muon", "weight_decay": 0.1}], lr=0.05, steps=5)
    torch_optimizer = torch.optim.Muon(
        [theirs], lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", ns_steps=5
    )
    for seed in range(4):
        torch.manual_seed(seed)
        ours.grad = theirs.grad = torch.randn(shape)
        before = ours.detach().clone(), theirs.detach().clone()
        optimizer.step()
        torch_optimizer.step()
        update, expected = ours.detach() - before[0], theirs.detach() - before[1]
        cosine = nn.functional.cosine_similarity(update.flatten(), expected.flatten(), dim=0)
        assert cosine > 0.96
        assert float(update.norm()) == pytest.approx(float(expected.norm()), rel=0.2)


def test_muon_update_has_the_size_of_adamw():
    ours = nn.Parameter(torch.zeros(32, 64))
    torch.manual_seed(0)
    ours.grad = torch.randn(32, 64)
    Muon([{"params": [ours], "kind": "muon"}], lr=1.0).step()
    assert float(ours.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.catches("muon_takes_embeddings")
@pytest.mark.parametrize("options", [{}, {"betas": (0.6, 0.7), "eps": 0.1}], ids=str)
def test_muon_uses_adamw_for_other_parameters(options):
    model = tiny_model(tie_embeddings=False)
    theirs = copy.deepcopy(model)
    for built, make in ((model, muon), (theirs, adamw)):
        optimizer = make(built, lr=0.01, weight_decay=0.1, **options)
        for seed in range(2):  # the first step is the same for any betas
            with_gradients(built, seed)
            optimizer.step()
    inner = 0
    for (name, ours), reference in zip(model.named_parameters(), theirs.parameters(), strict=True):
        if ours.dim() == 2 and "layers" in name:
            inner += 1
            assert not torch.equal(ours, reference)
        else:
            assert torch.equal(ours, reference), name
    assert inner == 2 * 6


@pytest.mark.parametrize("make", [adamw, muon])
def test_optimizer_resumes_bit_exactly(make):
    model = tiny_model()
    optimizer = make(model, lr=0.01, weight_decay=0.1)
    for seed in range(2):
        with_gradients(model, seed)
        optimizer.step()
    resumed = copy.deepcopy(model)
    resumed_optimizer = make(resumed, lr=0.01, weight_decay=0.1)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trained, its_optimizer in ((model, optimizer), (resumed, resumed_optimizer)):
        with_gradients(trained, 7)
        its_optimizer.step()
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))


def test_muon_orthogonalizes_full_tensors_of_shards(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        torch.manual_seed(0)
        start, gradient = torch.randn(8, 24), torch.randn(8, 24)
        plain = nn.Parameter(start.clone())
        plain.grad = gradient.clone()
        sharded = nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
        sharded.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        for parameter in (plain, sharded):
            Muon([{"params": [parameter], "kind": "muon", "weight_decay": 0.1}], lr=0.1).step()
        assert torch.equal(sharded.full_tensor(), plain)
    finally:
        dist.destroy_process_group()


def scales(model, **options):
    groups = build_param_groups(model, weight_decay=0.1, **options)
    scale_by_id = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale_by_id) == sum(len(group["params"]) for group in groups)
    return {name: scale_by_id[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.catches("all_layers_learn_at_one_rate")
def test_layer_lr_decay_lowers_the_lr_of_lower_layers():
    result = scales(tiny_model(n_layers=3, tie_embeddings=False), layer_lr_decay=0.5)
    assert result["head.weight"] == result["final_norm.weight"] == 1.0
    for layer, expected in enumerate((0.125, 0.25, 0.5)):
        assert result[f"layers.{layer}.attention.q_proj.weight"] == expected
        assert result[f"layers.{layer}.attention_norm.weight"] == expected
    assert result["embedding.weight"] == 0.0625


def test_layer_lr_decay_of_seq2seq_stacks():
    model = tiny_model(model=Seq2SeqTransformer, n_layers=1, n_decoder_layers=2, causal=False)
    result = scales(model, layer_lr_decay=0.5)
    layers = {name: scale for name, scale in result.items() if "layers." in name}
    assert len({scale for name, scale in layers.items() if "encoder" in name}) == 1
    assert {scale for name, scale in layers.items() if "decoder" in name} == {0.5, 0.25}


@pytest.mark.catches("seq2seq_embeddings_learn_like_the_head")
@pytest.mark.parametrize(("n_layers", "n_decoder_layers"), [(1, 3), (3, 1)])
def test_layer_lr_decay_of_seq2seq_embeddings(n_layers, n_decoder_layers):
    """Two vocabularies: neither embedding belongs to a stack by its name."""
    model = tiny_model(
        model=Seq2SeqTransformer, n_layers=n_layers, n_decoder_layers=n_decoder_layers,
        causal=False, source_vocab_size=17, position="learned", tie_embeddings=False,
    )  # fmt: skip
    result = scales(model, layer_lr_decay=0.5)
    assert result["embedding.weight"] == result["source_embedding.weight"] == 0.5**4
    assert result["head.weight"] == result["decoder.final_norm.weight"] == 1.0
    assert min(scale for name, scale in result.items() if "layers." in name) == 0.5**3


# An option that all registered optimizers take -> a value, and the groups' fields that have it.
SHARED_OPTIONS = {
    "lr": (0.02, "lr"),
    "weight_decay": (0.3, "weight_decay"),
    "layer_lr_decay": (0.5, "lr_scale"),
    "betas": ((0.7, 0.8), "betas"),
    "eps": (1e-3, "eps"),
}


def shared_options():
    """Names of the parameters, the model aside, that every registered optimizer has."""
    signatures = [
        inspect.signature(registry.get("optimizer", name)) for name in registry.names("optimizer")
    ]
    return set.intersection(*({*list(signature.parameters)[1:]} for signature in signatures))


def test_optimizer_options_are_all_tested():
    assert shared_options() == SHARED_OPTIONS.keys()


@pytest.mark.catches("schedulefree_ignores_layer_lr_decay", "muon_ignores_betas")
@pytest.mark.parametrize("option", SHARED_OPTIONS)
@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_optimizer_options_reach_each_parameter(name, option):
    value, field = SHARED_OPTIONS[option]
    model = tiny_model(n_layers=3, tie_embeddings=False)
    given = {"lr": 0.1, "weight_decay": 0.1, option: value}
    optimizer = registry.get("optimizer", name)(model, **given)
    result = {id(p): group[field] for group in optimizer.param_groups for p in group["params"]}
    depth = {"layers.2": 1, "layers.1": 2, "layers.0": 3, "embedding": 4}
    for parameter_name, parameter in model.named_parameters():
        expected = value
        if option == "layer_lr_decay":
            below = [d for start, d in depth.items() if parameter_name.startswith(start)]
            expected = 0.5 ** (below[0] if below else 0)
        elif option == "weight_decay" and not re.search(r"(_proj|head)\.weight$", parameter_name):
            expected = 0.0
        assert result[id(parameter)] == expected, parameter_name


def test_param_groups_omit_frozen_parameters():
    model = tiny_model()
    model.embedding.weight.requires_grad_(False)
    groups = build_param_groups(model, weight_decay=0.1)
    assert not any(p is model.embedding.weight for group in groups for p in group["params"])


def test_param_groups_of_other_models_have_lr_scale_1():
    model = with_gradients(nn.Sequential(nn.Linear(2, 2, bias=False)))
    assert build_param_groups(model, weight_decay=0.3) == [
        {"params": [model[0].weight], "weight_decay": 0.3, "lr_scale": 1.0}
    ]


@pytest.mark.parametrize("name", registry.names("optimizer"))
def test_optimizers_all_lower_the_loss(name):
    torch.manual_seed(0)
    model = tiny_model()
    optimizer = registry.get("optimizer", name)(model, lr=0.01, weight_decay=0.0)
    ids = torch.randint(0, 31, (4, 8))
    losses = []
    getattr(optimizer, "train", lambda: None)()
    for _ in range(30):
        logits = model(ids[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert math.isfinite(losses[-1])


def test_optimizer_without_its_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UserError, match=r'pip install "miniformer\[optim\]"'):
        schedulefree(tiny_model(), lr=0.1, weight_decay=0.0)


def test_schedulefree_evaluates_averaged_weights():
    model = with_gradients(tiny_model())
    optimizer = schedulefree(model, lr=0.1, weight_decay=0.0)
    optimizer.train()
    for seed in range(3):
        with_gradients(model, seed)
        optimizer.step()
    point = model.embedding.weight.detach().clone()
    optimizer.eval()
    assert not torch.equal(point, model.embedding.weight)
    optimizer.train()
    torch.testing.assert_close(point, model.embedding.weight.detach())


def test_default_lr_is_that_of_the_optimizer():
    assert MiniFormerLitModule(tiny_model(), optimizer="muon").lr == 5e-3
    assert MiniFormerLitModule(tiny_model(), optimizer="adamw").lr == 1e-3


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_optimizer_rejects_unknown_options(name):
    check_optimizer_options(name, ["betas", "eps"])
    for option in ("model", "nesterov"):  # the model is no option
        with pytest.raises(UserError, match=f"unknown option of optimizer={name}.* '{option}'"):
            check_optimizer_options(name, ["betas", option])


def test_optimizer_without_default_lr_needs_lr(monkeypatch):
    for make in (lambda model, *, lr, weight_decay: None, lambda model, **options: None):
        monkeypatch.setitem(registry._registered, "optimizer", {"mine": make})
        with pytest.raises(UserError, match="optimizer=mine has no default learning rate; set"):
            default_lr("mine")


@pytest.mark.catches("fused_step_leaves_versions_of_weights")
@pytest.mark.parametrize("role", [None, "adamw"])
@pytest.mark.parametrize("optimizer", [adamw, muon])
def test_step_changes_versions_of_weights(optimizer, role):
    """Decoding kernels hold copies of weights, and notice changes by the versions."""
    model = with_gradients(tiny_model())
    if role is not None:
        model.optimizer_role = role
    before = [parameter._version for parameter in model.parameters()]
    optimizer(model, lr=0.1, weight_decay=0.1).step()
    assert before != [parameter._version for parameter in model.parameters()]
