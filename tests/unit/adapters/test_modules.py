"""Adapted modules compared with the formulas of the papers in plain tensors."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from miniformer import Seq2SeqTransformer, UserError, adapters, merge_transforms
from miniformer.runtime.native.engine import get_engine
from tests.kit import tiny_model

X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))
IDS = torch.randint(0, 31, (3, 6), generator=torch.Generator().manual_seed(4))


def adapted(method="lora", model=None, **options):
    """A model in eval mode with an adapter whose values are random."""
    model = adapters.add(tiny_model() if model is None else model, method, **options)
    randomize(model)
    return model.eval()


def randomize(model, name="default"):
    torch.manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".adapters.{name}." in key:
                parameter.add_(0.2 * torch.randn_like(parameter))


def parts(model, path):
    """The adapted module and copies of its weight, its bias and the tensors of the adapter."""
    module = model.get_submodule(path)
    own = dict(module.adapters["default"].named_parameters())
    return module, module._parameters["weight"], module._parameters["bias"], own


@pytest.mark.catches("alpha_is_not_divided_by_the_rank", "scale_of_rslora_is_that_of_lora")
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_the_scaled_product_of_two_matrices(rslora):
    model = adapted(r=4, alpha=6, rslora=rslora, rank_pattern={"v_proj": 2})
    for name, rank in (("q_proj", 4), ("v_proj", 2)):
        module, weight, bias, own = parts(model, f"layers.1.attention.{name}")
        assert own["lora_A"].shape == (rank, 16)
        scale = 6 / (math.sqrt(rank) if rslora else rank)
        expected = X @ (weight + scale * own["lora_B"] @ own["lora_A"]).T + bias
        torch.testing.assert_close(module(X), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            F.linear(X, module.effective_weight(), module.bias), expected, rtol=0, atol=1e-5
        )


@pytest.mark.catches("norm_of_dora_is_that_of_columns")
def test_dora_has_rows_of_trained_length():
    model = adapted("dora", r=3, alpha=6)
    module, weight, bias, own = parts(model, "layers.0.attention.k_proj")
    changed = weight + 2 * own["lora_B"] @ own["lora_A"]
    rows = changed / changed.square().sum(1, keepdim=True).sqrt()
    expected = X @ (own["magnitude"][:, None] * rows).T + bias
    torch.testing.assert_close(module(X), expected, rtol=0, atol=1e-5)
    fresh = adapters.add(tiny_model(), "dora", r=3)
    magnitude = fresh.layers[0].attention.k_proj.adapters["default"].magnitude
    torch.testing.assert_close(magnitude, weight.square().sum(1).sqrt())


@pytest.mark.catches("factors_of_ia3_leave_the_bias")
def test_ia3_scales_outputs_with_the_bias_and_inputs():
    model = adapted("ia3")
    for path in ("layers.0.attention.k_proj", "layers.0.attention.v_proj"):
        module, weight, bias, own = parts(model, path)
        expected = (X @ weight.T + bias) * own["ia3_l"][:, 0]
        torch.testing.assert_close(module(X), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(F.linear(X, module.effective_weight(), module.bias), expected)
    module, weight, bias, own = parts(model, "layers.0.feed_forward.down_proj")
    x = torch.randn(2, weight.shape[1])
    torch.testing.assert_close(module(x), (x * own["ia3_l"][0]) @ weight.T + bias)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "bottleneck", "bitfit"])
@pytest.mark.catches("product_begins_at_random", "disabled_adapters_stay_disabled")
def test_new_adapter_changes_nothing_and_disabled_is_the_base(method):
    base = tiny_model()
    model = adapters.add(copy.deepcopy(base), method).eval()
    torch.testing.assert_close(model(IDS), base(IDS), rtol=0, atol=1e-6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.allclose(model(IDS), base(IDS), atol=1e-3)
    changed = model(IDS)
    with adapters.disable(model):
        assert torch.equal(model(IDS), base(IDS))
    assert torch.equal(model(IDS), changed)


@pytest.mark.catches("dropout_of_adapters_is_always_on")
def test_dropout_is_of_training_only():
    model = adapted(dropout=0.5)
    module, weight, bias, own = parts(model, "layers.0.attention.q_proj")
    assert torch.equal(module(X), module(X))
    module.train()
    torch.manual_seed(0)
    actual = module(X)
    torch.manual_seed(0)
    product = F.dropout(X, 0.5) @ own["lora_A"].T @ own["lora_B"].T
    torch.testing.assert_close(actual, X @ weight.T + bias + product, rtol=0, atol=1e-5)


@pytest.mark.catches("pissa_begins_with_a_change")
def test_pissa_takes_the_largest_singular_vectors_and_keeps_the_outputs():
    base = tiny_model()
    model = adapters.add(copy.deepcopy(base), init="pissa", r=2, alpha=3).eval()
    torch.testing.assert_close(model(IDS), base(IDS), rtol=0, atol=1e-5)
    _, weight, _, own = parts(model, "layers.0.attention.o_proj")
    _, values, _ = torch.linalg.svd(weight)
    product = 1.5 * own["lora_B"] @ own["lora_A"]
    torch.testing.assert_close(torch.linalg.svdvals(product)[:2], values[:2])
    torch.testing.assert_close(torch.linalg.svdvals(weight - product)[:-2], values[2:])


def test_bottleneck_follows_both_sublayers_or_the_last():
    for placement, count in (("houlsby", 2), ("pfeiffer", 1)):
        model = adapted("bottleneck", placement=placement, size=3)
        names = [name for name, _ in model.named_modules() if name.endswith("adapters.default")]
        assert len(names) == count * 2
    layer = model.layers[0].feed_forward
    own = dict(layer.adapters["default"].named_parameters())
    inner = layer.down_proj(layer.activation(layer.up_proj(X)))
    hidden = (inner @ own["down.weight"].T + own["down.bias"]).clamp_min(0)
    expected = inner + hidden @ own["up.weight"].T + own["up.bias"]
    torch.testing.assert_close(layer(X), expected)
    with pytest.raises(UserError, match="bottleneck"):
        adapters.merge(model)
    with pytest.raises(UserError, match="cannot be expressed"):
        merge_transforms(model)


def test_bitfit_trains_the_biases_of_layers():
    model = adapters.add(tiny_model(), "bitfit")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("layers.") and name.endswith(".bias") for name in trained)


@pytest.mark.catches("merged_weight_is_that_of_the_base")
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_merged_model_has_the_outputs_and_unmerging_the_bits(method):
    model = adapted(method)
    before, weights = model(IDS), copy.deepcopy(model.state_dict())
    adapters.merge(model)
    torch.testing.assert_close(model(IDS), before, rtol=0, atol=1e-5)
    assert all(torch.equal(weights[name], x) for name, x in model.state_dict().items())
    adapters.unmerge(model)
    assert torch.equal(model(IDS), before)
    torch.testing.assert_close(merge_transforms(model)(IDS), before, rtol=0, atol=1e-5)


@pytest.mark.catches("rows_have_the_adapter_of_the_first")
@pytest.mark.parametrize("model_class", [None, Seq2SeqTransformer])
def test_rows_with_different_adapters_equal_each_alone(model_class):
    seq2seq = model_class is not None
    model = tiny_model(model=Seq2SeqTransformer, causal=False) if seq2seq else tiny_model()
    for name, method in (("a", "lora"), ("b", "ia3"), ("c", "bottleneck")):
        adapters.add(model, method, name=name)
        randomize(model, name)
    model.eval()
    inputs = (IDS, IDS[:, :4]) if seq2seq else (IDS,)
    names = ["b", None, "a"]
    alone = []
    for row, name in enumerate(names):
        adapters.use(model, name)
        alone.append(model(*(x[row : row + 1] for x in inputs)))
    adapters.use(model, names)
    torch.testing.assert_close(model(*inputs), torch.cat(alone), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="2 rows, but adapters are in use for 3"):
        model(*(x[:2] for x in inputs))


@pytest.mark.catches("kernels_keep_the_earlier_adapter")
def test_kernels_decode_with_the_adapter_in_use():
    model = tiny_model()
    for name in ("a", "b"):
        adapters.add(model, name=name, alpha=40.0)
        randomize(model, name)
    model.eval()
    texts = {}
    for name in ("a", "b", None):
        adapters.use(model, name)
        texts[name] = model.generate([[1, 2, 3]], 8, temperature=0)
        assert get_engine(model) is not None
        merged = merge_transforms(model)
        assert texts[name] == merged.generate([[1, 2, 3]], 8, temperature=0)
    assert texts["a"] != texts["b"] != texts[None]


@pytest.mark.catches("tied_head_is_changed_with_the_embedding")
def test_tied_embedding_is_untied_first_or_refused():
    model = tiny_model()
    assert model.head.tied
    with pytest.raises(UserError, match="untie_head"):
        adapters.add(copy.deepcopy(model), targets=["embedding"])
    table = model.embedding.weight.detach().clone()
    adapted(model=model, targets=["embedding"], r=2, alpha=6, untie_head=True)
    own = dict(model.embedding.adapters["default"].named_parameters())
    changed = table + 3 * (own["lora_embedding_B"] @ own["lora_embedding_A"]).T
    torch.testing.assert_close(model.embedding(IDS), changed[IDS])
    assert torch.equal(model.head.weight, table)
    assert model.config.tie_embeddings is False
    torch.testing.assert_close(merge_transforms(model)(IDS), model(IDS), rtol=0, atol=1e-5)


def test_untied_head_has_an_adapter():
    model = adapted(model=tiny_model(tie_embeddings=False), targets=["head", "q_proj"], r=2)
    own = dict(model.head.adapters["default"].named_parameters())
    weight = model.head._parameters["weight"] + 4 * own["lora_B"] @ own["lora_A"]
    expected = F.linear(X, weight, model.head._parameters.get("bias"))
    torch.testing.assert_close(model.logits(X), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(merge_transforms(model)(IDS), model(IDS), rtol=0, atol=1e-5)


@pytest.mark.catches("rows_of_new_tokens_are_added")
def test_rows_of_new_tokens_are_trained_in_embedding_and_tied_head():
    base = tiny_model()
    model = adapters.add(copy.deepcopy(base), targets=[], new_tokens=[3, 7]).eval()
    assert [p.shape for p in model.parameters() if p.requires_grad] == [(2, 16)]
    torch.testing.assert_close(model(IDS), base(IDS))
    with torch.no_grad():
        model.embedding.adapters["default"].rows.fill_(0.5)
        base.embedding.weight[[3, 7]] = 0.5
    torch.testing.assert_close(model(IDS), base(IDS))


def test_saved_modules_are_copies():
    base = tiny_model(output_dim=3, pooling="mean")
    model = adapters.add(copy.deepcopy(base), targets=["q_proj"], modules_to_save=["head"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} <= trained
    with torch.no_grad():
        model.head.weight.zero_()
    with adapters.disable(model):
        assert torch.equal(model.head.weight, base.head.weight)
    assert not model.head.weight.any()


@pytest.mark.catches("types_of_patterns_are_not_checked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_prj"]}, "targets: 'q_prj' matches nothing; did you mean 'q_proj'"),
        ({"targets": []}, "targets is empty"),
        ({"r": 17}, r"r=17 at layers.0.attention.q_proj \[16, 16\] is above 16"),
        ({"r": 0}, "r must be at least 1"),
        ({"rank": 4}, "unknown field .rank.; known: .* r, alpha"),
        ({"rank_pattern": {"w_proj": 2}}, "rank_pattern: 'w_proj' matches nothing"),
        ({"rank_pattern": {"v_proj": 1.5}}, "rank_pattern: v_proj: must be an integer above 0"),
        ({"alpha_pattern": {"v_proj": "2"}}, "alpha_pattern: v_proj: must be a number, not '2'"),
        ({"modules_to_save": ["heads"]}, "modules_to_save: 'heads' matches nothing.*'head'"),
        ({"new_tokens": [99]}, "99 is not below the vocabulary size 31"),
        ({"init": "svd"}, "init must be one of"),
        ({"method": "lori"}, "adapter 'lori'"),
    ],
)
@pytest.mark.catches("unknown_targets_are_ignored")
def test_invalid_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        adapters.add(tiny_model(), **options)


@pytest.mark.catches("added_adapters_are_nameless")
def test_names_are_known():
    model = adapters.add(tiny_model(), name="a")
    assert adapters.names(model) == ["a"]
    with pytest.raises(UserError, match="already"):
        adapters.add(model, name="a")
    with pytest.raises(UserError, match=r"adapter 'aa'.*'a'"):
        adapters.use(model, "aa")
    with pytest.raises(UserError, match="no adapters"):
        adapters.use(tiny_model(), "a")
    adapters.use(model, [None, "a"])
    with pytest.raises(UserError, match="different adapters"):
        merge_transforms(model)
