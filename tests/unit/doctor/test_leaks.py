"""The leak detector finds deliberate leaks, and reports none for correct models."""

import pytest
import torch
from torch import nn

import miniformer
from miniformer import (
    FeedForward,
    MultiHeadAttention,
    Seq2SeqTransformer,
    Transformer,
)
from miniformer.config import UserError
from miniformer.model.masks import AttentionMask
from tests.kit import tiny_model


def kinds(model):
    return {leak.kind for leak in miniformer.find_leaks(model)}


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": False}, {}, {"input_dim": 5}, {"sliding_window": 3, "attention_sinks": True},
        {"position": "t5_relative", "logit_softcap": 2.0}, {"position": "alibi", "pre_norm": False},
    ],
    ids=str,
)  # fmt: skip
def test_correct_model_has_no_leaks(changes):
    model = tiny_model(**changes).train()
    assert miniformer.find_leaks(model) == []
    miniformer.assert_no_leaks(model)
    assert model.training, "the model is left as it was"
    assert next(model.parameters()).requires_grad


def test_correct_seq2seq_model_has_no_leaks():
    assert miniformer.find_leaks(tiny_model(model=Seq2SeqTransformer, causal=False)) == []


class SeesAll(MultiHeadAttention):
    """Attention without a mask."""

    def attend(self, q, k, v, context):
        return super().attend(q, k, v, context._replace(mask=AttentionMask()))


class MixesOverTime(FeedForward):
    """A feed-forward that reads the next token."""

    def forward(self, x):
        return super().forward(x + x.roll(-1, dims=1))


class MixesRows(FeedForward):
    """A feed-forward that subtracts the batch mean."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


def with_part(name, part, **changes):
    model = tiny_model(**changes)
    layer = model.layers[1]
    setattr(layer, name, part(model.config))
    return model.eval()


def test_leak_of_attention_without_a_mask():
    assert kinds(with_part("attention", SeesAll)) == {"future", "padding", "packing"}
    assert kinds(with_part("attention", SeesAll, causal=False)) == {"padding", "packing"}


@pytest.mark.catches("detector_changes_nothing")
def test_leak_of_the_next_token_is_located():
    model = with_part("feed_forward", MixesOverTime)
    leaks = [leak for leak in miniformer.find_leaks(model) if leak.kind == "future"]
    assert [leak.positions for leak in leaks] == [[t] for t in range(7)]
    with pytest.raises(AssertionError, match="future: changing tokens 1 to 7 changes outputs 0 by"):
        miniformer.assert_no_leaks(model)


def test_leak_between_rows_is_found():
    assert "batch" in kinds(with_part("feed_forward", MixesRows))


def test_leak_of_future_targets_is_found():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    model.decoder.causal = False
    assert "future" in kinds(model)


def test_leak_of_source_padding_is_found():
    class Deaf(Seq2SeqTransformer):
        def encode(self, source, source_mask=None):
            return super().encode(source)

    assert "padding" in kinds(tiny_model(model=Deaf, causal=False))


class ForgetsToBeCausal(Transformer):
    """A model that is not causal if it receives a mask or segment ids."""

    mask_argument = "attention_mask"

    def run_layers(self, x, **options):
        self.causal = options[self.mask_argument] is None
        return super().run_layers(x, **options)


class ForgetsSegments(ForgetsToBeCausal):
    mask_argument = "segment_ids"


class Lagging(FeedForward):
    """Row b reads row b - 1, the first row none."""

    def forward(self, x):
        return super().forward(torch.cat((x[:1], x[1:] + x[:-1])))


class FirstMaskForAll(Transformer):
    def features(self, inputs, attention_mask=None, **options):
        if attention_mask is not None:
            attention_mask = attention_mask[:1].expand_as(attention_mask)
        return super().features(inputs, attention_mask, **options)


class EmbedsPadding(Transformer):
    def embed(self, inputs, attention_mask=None, **options):
        return self.features(inputs, attention_mask, **options).mean(1)


class MixesSources(Seq2SeqTransformer):
    def encode(self, source, source_mask=None):
        memory = super().encode(source, source_mask)
        return memory._replace(features=memory.features + memory.features.roll(1, 0))


class ForgetsTarget(Seq2SeqTransformer):
    def features(self, target, memory, target_mask=None, **options):
        self.decoder.causal = target_mask is None
        return super().features(target, memory, target_mask, **options)


@pytest.mark.catches("rows_of_a_layout_are_alike")
@pytest.mark.parametrize(
    ("broken", "causal", "expected"),
    [
        (ForgetsToBeCausal, True, {"future"}),
        (ForgetsSegments, True, {"future"}),
        (FirstMaskForAll, False, {"padding"}),
        (EmbedsPadding, False, {"padding"}),
        (MixesSources, False, {"batch", "padding"}),
        (ForgetsTarget, False, {"future"}),
    ],
)
def test_leak_that_depends_on_inputs_is_found(broken, causal, expected):
    assert kinds(tiny_model(model=broken, causal=causal)) == expected


@pytest.mark.catches("detector_changes_one_row_only")
def test_leak_check_changes_each_row():
    result = miniformer.find_leaks(with_part("feed_forward", Lagging, causal=False))
    leaks = [leak for leak in result if leak.kind == "batch"]
    assert {leak.perturbation for leak in leaks if leak.output_name == "outputs"} == {
        "row 0",
        "row 1",
    }
    vectors = {leak.perturbation: leak.positions for leak in leaks if leak.output_name == "vectors"}
    assert vectors == {"row 0": [1], "row 1": [2]}


def test_leak_of_pooled_vectors_names_their_rows():
    leak = miniformer.find_leaks(tiny_model(model=EmbedsPadding, causal=False))[0]
    assert str(leak).startswith(
        "padding: changing padding (padded on the left) changes vectors 0, 1, 2 by up to"
    )


@pytest.mark.slow
def test_leak_check_restores_a_compiled_model():
    sound = tiny_model(model=Seq2SeqTransformer, causal=False)
    assert miniformer.find_leaks(torch.compile(sound, backend="eager")) == []
    broken = tiny_model(model=MixesSources, causal=False)
    assert kinds(torch.compile(broken, backend="eager")) == {"batch", "padding"}


class Head(nn.Module):
    """Adds to the logits of any head."""

    def __init__(self, head, bias):
        super().__init__()
        self.head, self.bias = head, bias

    def forward(self, features, embedding):
        return self.head(features, embedding) + self.bias


def test_leak_check_accepts_logits_of_minus_infinity():
    model = tiny_model()
    bias = torch.zeros(31)
    bias[3] = float("-inf")
    model.head = Head(model.head, bias)
    assert miniformer.find_leaks(model) == []


@pytest.mark.catches("large_output_hides_leaks")
def test_leak_is_not_hidden_by_a_huge_logit():
    model = with_part("feed_forward", MixesOverTime)
    bias = torch.zeros(31)
    bias[3] = 1e7
    model.head = Head(model.head, bias)
    assert "future" in kinds(model)


@pytest.mark.parametrize("architecture", [Transformer, Seq2SeqTransformer])
@pytest.mark.parametrize("max_seq_len", [1, 2, 3, 4])
def test_leak_check_uses_max_seq_len_of_small_models(architecture, max_seq_len):
    model = tiny_model(
        model=architecture, causal=architecture is Transformer, max_seq_len=max_seq_len,
        position="learned",
    )  # fmt: skip
    assert miniformer.find_leaks(model) == []
    layers = (model if architecture is Transformer else model.decoder).layers
    layers[0].feed_forward = MixesOverTime(model.config).eval()
    assert ("future" in kinds(model)) == (max_seq_len > 1)


def test_leak_check_features_have_the_dtype_of_the_model():
    assert miniformer.find_leaks(tiny_model(input_dim=5).bfloat16()) == []


def test_leak_check_rejects_a_model_of_one_position():
    with pytest.raises(UserError, match="vocab_size=1 cannot be checked"):
        miniformer.find_leaks(tiny_model(vocab_size=1))
    two = tiny_model(model=Seq2SeqTransformer, source_vocab_size=1, causal=False)
    with pytest.raises(UserError, match="source_vocab_size=1 cannot be checked"):
        miniformer.find_leaks(two)


def test_leak_check_restores_the_mode_of_every_module():
    model = tiny_model().train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    miniformer.find_leaks(model)
    assert [module.training for module in model.modules()] == modes


def test_leak_check_reports_nan_outputs():
    class Broken(nn.Module):
        def forward(self, x):
            return x * float("nan")

    model = tiny_model()
    model.final_norm = Broken()
    assert kinds(model) == {"future", "padding", "batch", "packing"}
