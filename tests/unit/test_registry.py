import pytest
import torch
from torch import nn

import miniformer
from miniformer import registry
from miniformer.config import ConfigError, TransformerConfig
from miniformer.model.position import RotaryPosition
from miniformer.model.transformer import Transformer
from tests.kit import run_python


@pytest.mark.parametrize("kind", registry.kinds())
def test_registry_has_every_built_in_part(kind):
    for name in registry.names(kind):
        assert callable(registry.get(kind, name)), f"{kind} {name}"


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
    with pytest.raises(ValueError, match="no component kind 'nrom'"):
        miniformer.register("nrom", "scale", Scale)


def test_registry_loads_entry_points(tmp_path):
    (tmp_path / "tiny_plugin.py").write_text("def cube(x):\n    return x**3\n")
    info = tmp_path / "tiny_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[miniformer.activation]\ncube = tiny_plugin:cube\n")
    done = run_python(
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import miniformer\n"
        "config = miniformer.TransformerConfig(activation='cube')\n"
        "assert 'torch' not in sys.modules and 'tiny_plugin' not in sys.modules\n"
        "model = miniformer.Transformer(config)\n"
        "print(model.layers[0].feed_forward.activation(3))\n",
    )
    assert done.stdout == "27\n", done.stderr


def test_registry_rejects_unknown_kinds():
    for ask in (registry.names, registry.builtin_names, lambda kind: registry.get(kind, "x")):
        with pytest.raises(ValueError, match="no component kind 'foo'; kinds: activation"):
            ask("foo")


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
