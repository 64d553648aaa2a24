"""The leak detector finds what was let in on purpose, and nothing else."""

import pytest
import torch
from torch import nn

import miniformer
from miniformer import FeedForward, MultiHeadAttention, Seq2SeqTransformer
from miniformer.doctor.__main__ import main
from miniformer.model.masks import AttentionMask
from tests.kit import tiny_model


def kinds(model):
    return {leak.kind for leak in miniformer.find_leaks(model)}


@pytest.mark.parametrize(
    "changes",
    [
        {"causal": False}, {}, {"input_dim": 5}, {"sliding_window": 3, "attention_sinks": True},
        {"position": "relative", "logit_softcap": 2.0}, {"position": "alibi", "pre_norm": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_sound_model_has_no_leaks(changes):
    model = tiny_model(**changes).train()
    assert miniformer.find_leaks(model) == []
    miniformer.assert_no_leaks(model)
    assert model.training, "the model is left as it was"
    assert next(model.parameters()).requires_grad


def test_a_sound_model_with_two_stacks_has_no_leaks():
    assert miniformer.find_leaks(tiny_model(model=Seq2SeqTransformer, causal=False)) == []


class SeesAll(MultiHeadAttention):
    """Attention that forgets its mask."""

    def attend(self, q, k, v, context):
        return super().attend(q, k, v, context._replace(mask=AttentionMask()))


class MixesOverTime(FeedForward):
    """A feed-forward that reads the next token."""

    def forward(self, x):
        return super().forward(x + x.roll(-1, dims=1))


class MixesRows(FeedForward):
    """A feed-forward that takes the mean of the batch away."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


def with_part(name, part, **changes):
    model = tiny_model(**changes)
    layer = model.layers[1]
    setattr(layer, name, part(model.config))
    return model.eval()


def test_attention_without_a_mask_leaks_everywhere():
    assert kinds(with_part("attention", SeesAll)) == {"future", "padding", "packing"}
    assert kinds(with_part("attention", SeesAll, causal=False)) == {"padding", "packing"}


def test_a_look_at_the_next_token_is_found_where_it_happens():
    model = with_part("feed_forward", MixesOverTime)
    leaks = [leak for leak in miniformer.find_leaks(model) if leak.kind == "future"]
    assert [leak.moved for leak in leaks] == [[t] for t in range(7)]
    with pytest.raises(AssertionError, match="future: changing tokens 1 to 7 moves outputs 0 by"):
        miniformer.assert_no_leaks(model)


def test_a_look_at_other_rows_is_found():
    assert "batch" in kinds(with_part("feed_forward", MixesRows))


def test_a_decoder_that_sees_its_future_is_found():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    model.decoder.causal = False
    assert "future" in kinds(model)


def test_a_source_mask_that_is_ignored_is_found():
    class Deaf(Seq2SeqTransformer):
        def encode(self, source, source_mask=None):
            return super().encode(source)

    assert "padding" in kinds(tiny_model(model=Deaf, causal=False))


class Padded(nn.Module):
    """A model whose attention mask or segments change how it works."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.config, self.change = model, model.config, change

    def forward(self, *inputs, **options):
        return self.change(self.model, *inputs, **options)


def causal_without_a_mask_only(model, x, **options):
    model.causal = not options
    return model(x, **options)


def rows_read_the_one_before(model, x, **options):
    out = model(x, **options)
    return out + 0.1 * out.roll(1, 0) * torch.tensor([0.0, 0.0, 1.0])[:, None, None]


def first_mask_for_all(model, x, attention_mask=None, **options):
    mask = None if attention_mask is None else attention_mask[:1].expand_as(attention_mask)
    return model(x, mask, **options)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (causal_without_a_mask_only, "future"),
        (rows_read_the_one_before, "batch"),
        (first_mask_for_all, "padding"),
    ],
)
def test_a_leak_that_shows_in_one_layout_or_one_row_only(change, kind):
    model = Padded(tiny_model(), change)
    assert kind in kinds(model)


def test_a_causal_mask_that_is_lost_in_the_decoder_with_padding():
    class Loose(Seq2SeqTransformer):
        def features(self, target, memory, target_mask=None, **options):
            self.decoder.causal = target_mask is None
            return super().features(target, memory, target_mask, **options)

    assert "future" in kinds(tiny_model(model=Loose, causal=False))


def test_sources_that_mix_are_found():
    class Mixed(Seq2SeqTransformer):
        def encode(self, source, source_mask=None):
            memory = super().encode(source, source_mask)
            return memory._replace(features=memory.features + memory.features.roll(1, 0))

    assert "batch" in kinds(tiny_model(model=Mixed, causal=False))


@pytest.mark.parametrize("causal", [True, False])
def test_a_vector_of_a_sequence_that_holds_padding_is_found(causal):
    class Unmasked(miniformer.Transformer):
        def embed(self, inputs, attention_mask=None, **options):
            return self.features(inputs, attention_mask).mean(1)

    (leak, *_) = miniformer.find_leaks(tiny_model(model=Unmasked, causal=causal))
    assert leak.kind == "padding"
    assert "(in embed)" in leak.changed


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", [miniformer.Transformer, Seq2SeqTransformer])
def test_short_models_are_examined_too(length, kind):
    causal = kind is miniformer.Transformer
    assert miniformer.find_leaks(tiny_model(model=kind, max_seq_len=length, causal=causal)) == []


@pytest.mark.parametrize("changes", [{}, {"input_dim": 5}, {"causal": False}])
def test_half_precision_is_no_leak(changes):
    assert miniformer.find_leaks(tiny_model(**changes).bfloat16()) == []
    assert "batch" in kinds(with_part("feed_forward", MixesRows, **changes).bfloat16())


def test_a_compiled_model_with_two_stacks_is_known_as_one():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    assert miniformer.find_leaks(torch.compile(model, backend="eager")) == []


def test_infinite_and_huge_outputs_hide_nothing_and_are_no_leak():
    class Shifted(nn.Module):
        def __init__(self, head, shift):
            super().__init__()
            self.head, self.shift = head, shift

        def forward(self, x, weight):
            return self.head(x, weight) + self.shift

    for number in (float("-inf"), 1e9):
        shift = torch.zeros(31)
        shift[3] = number
        sound = tiny_model()
        sound.head = Shifted(sound.head, shift)
        assert miniformer.find_leaks(sound) == []
        leaky = with_part("feed_forward", MixesOverTime)
        leaky.head = Shifted(leaky.head, shift)
        assert "future" in kinds(leaky)


def test_a_vocabulary_of_one_token_is_refused():
    with pytest.raises(ValueError, match="vocab_size=1: with one token nothing can be changed"):
        miniformer.find_leaks(tiny_model(vocab_size=1))


def test_each_part_keeps_its_own_mode():
    model = tiny_model().train()
    model.layers[0].eval()
    miniformer.find_leaks(model)
    assert model.training
    assert model.layers[1].training
    assert not model.layers[0].training
    assert not model.layers[0].attention.training


def test_outputs_that_are_not_numbers_are_a_leak():
    class Broken(nn.Module):
        def forward(self, x):
            return x * float("nan")

    model = tiny_model()
    model.final_norm = Broken()
    assert kinds(model) == {"future", "padding", "batch", "packing"}


def test_the_command_on_a_model_directory(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for text in ("Transformer: ", "cache of 32 tokens", "cached decoding", "no leak found",
                 "layers.1.attention: sdpa (torch's fused attention)"):  # fmt: skip
        assert text in out


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_the_command_on_a_family(name, capsys):
    assert main(["--family", name]) == 0
    assert "no leak found" in capsys.readouterr().out


def test_a_leak_ends_the_command_with_1(tmp_path, capsys, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: x.roll(-1, dims=1))
    assert main([str(tmp_path)]) == 1
    assert "LEAK future: changing tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "lama"], "unknown family 'lama' (did you mean 'llama'?)"),
        (["nowhere"], "nowhere: no such model directory"),
        (["a", "--family", "llama"], "name a model directory or a family, not both"),
        (["--famly", "llama"], "unknown flag --famly; did you mean --family?"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_without_arguments_it_tells_of_the_machine(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}" in out
    assert out.count("GFLOP/s") == 2
