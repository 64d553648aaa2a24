import sys

import pytest
import torch
from torch import nn

import miniformer
from miniformer import registry
from miniformer.config import ConfigError, TransformerConfig, UserError
from miniformer.model.position import RotaryPosition
from miniformer.model.transformer import Transformer


@pytest.mark.parametrize("kind", registry.kinds())
def test_registry_has_every_built_in_part(kind):
    for name in registry.names(kind):
        component = registry.get(kind, name)
        modules = {"command": "run", "adapter_format": "load"}  # each with its main function
        call = getattr(component, modules[kind]) if kind in modules else component
        assert callable(call), f"{kind} {name}"


@pytest.mark.catches("unknown_name_gets_no_suggestion")
def test_registry_suggests_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown norm 'rmsnrm' \(did you mean 'rmsnorm'\?\)"):
        registry.get("norm", "rmsnrm")


def test_registered_part_can_be_used_in_a_config(monkeypatch):
    class Scale(nn.Module):
        def __init__(self, dim, *, eps, bias):
            super().__init__()
            self.weight = nn.Parameter(torch.full((dim,), 2.0))

        def forward(self, x):
            return x * self.weight

    monkeypatch.setitem(registry._registered, "norm", {})
    miniformer.register("norm", "scale", Scale)
    model = Transformer(TransformerConfig(vocab_size=11, d_model=8, n_heads=2, norm="scale"))
    assert isinstance(model.final_norm, Scale)
    with pytest.raises(ValueError, match="norm 'scale' exists already"):
        miniformer.register("norm", "scale", Scale)
    with pytest.raises(UserError, match=r"unknown component kind 'nrom' \(did you mean 'norm'"):
        miniformer.register("nrom", "scale", Scale)


@pytest.mark.catches("register_is_no_decorator")
def test_register_is_also_a_decorator(monkeypatch):
    monkeypatch.setitem(registry._registered, "activation", {})

    @miniformer.register("activation", "cube")
    def cube(x):
        return x**3

    assert cube(2) == 8
    assert registry.get("activation", "cube") is cube


def test_registry_rejects_unknown_kinds():
    for ask in (registry.names, registry.builtin_names, lambda kind: registry.get(kind, "x")):
        with pytest.raises(UserError, match="unknown component kind 'foo'; known: activation"):
            ask("foo")


def test_interface_of_every_kind_is_declared():
    for kind in registry.kinds():
        assert registry.interface(kind), kind


@pytest.fixture
def reward(monkeypatch):
    """A new kind, removed after the test."""
    monkeypatch.setattr(registry, "_added_kinds", {})
    monkeypatch.setattr(registry, "_registered", {**registry._registered})
    registry.add_kind("reward", "(texts) -> [B]")


@pytest.mark.catches("kinds_are_closed")
def test_added_kind_has_components(reward):
    assert registry.kinds()[-1] == "reward"
    assert registry.names("reward") == []
    registry.register("reward", "length", len)
    assert registry.names("reward") == ["length"]
    assert registry.get("reward", "length") is len
    assert registry.interface("reward") == "(texts) -> [B]"
    with pytest.raises(UserError, match=r"unknown reward 'lenght' \(did you mean 'length'\?\)"):
        registry.get("reward", "lenght")


def test_kind_that_exists_is_not_added_again(reward):
    for name in ("reward", "norm"):
        with pytest.raises(UserError, match=f"kind '{name}' exists already"):
            registry.add_kind(name, "(x) -> x")
    for name in ("kind", "a b", ""):
        with pytest.raises(UserError, match="must be an identifier other than 'kind'"):
            registry.add_kind(name, "(x) -> x")


def test_taken_name_is_refused_with_its_owner(monkeypatch):
    monkeypatch.setitem(registry._registered, "activation", {"cube": len})
    with pytest.raises(UserError, match="'cube' exists already: this process has registered len"):
        registry.register("activation", "cube", torch.relu)
    with pytest.raises(UserError, match="'relu' exists already: it is built in"):
        registry.register("activation", "relu", torch.relu)


def test_resolve_takes_names_and_import_paths(tmp_path, monkeypatch):
    (tmp_path / "own_parts_of_a_user.py").write_text("class Part:\n    size = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])
    assert registry.resolve("norm", "rmsnorm").__name__ == "RMSNorm"
    assert registry.resolve("callback", "own_parts_of_a_user:Part").size == 3
    with pytest.raises(UserError, match=r"callback 'own_parts_of_a_user:Prt' cannot be imported: "):
        registry.resolve("callback", "own_parts_of_a_user:Prt")
    with pytest.raises(UserError, match=r"'no_such:Part' cannot be imported: ModuleNotFoundError"):
        registry.resolve("callback", "no_such:Part")


def test_summary_is_the_first_line_of_a_docstring():
    for kind, name in (("norm", "rmsnorm"), ("task", "seq2seq"), ("scheduler", "wsd")):
        doc = (
            registry.get(kind, name).__doc__
            or sys.modules[registry.get(kind, name).__module__].__doc__
        )
        assert registry.summary(kind, name) == doc.partition("\n")[0].rstrip(".")


@pytest.mark.catches("kinds_share_names")
@pytest.mark.parametrize(
    ("kind", "name", "owner"),
    [
        ("activation", "swiglu", "gated_activation"),
        ("gated_activation", "gelu", "activation"),
    ],
)
def test_registry_rejects_an_activation_name_of_another_kind(monkeypatch, kind, name, owner):
    monkeypatch.setitem(registry._registered, kind, {})
    with pytest.raises(ValueError, match=f"^{owner} '{name}' exists already"):
        registry.register(kind, name, torch.tanh)


def test_registered_position_may_read_any_setting(monkeypatch):
    class Turned(RotaryPosition):
        pass

    monkeypatch.setitem(registry._registered, "position", {"turned": Turned})
    config = TransformerConfig(
        vocab_size=11, d_model=16, n_heads=2, position="turned", rotary_base=5e5, rotary_pct=0.5
    )
    model = Transformer(config)
    assert model(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()
    with pytest.raises(ConfigError, match=r"rotary_base=500000.0 has no effect"):
        TransformerConfig(position="alibi", rotary_base=5e5)
