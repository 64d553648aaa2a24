"""Inputs and outputs of a model: embeddings, positions, hidden states, parts of the layers."""

import pytest
import torch

from miniformer import Seq2SeqTransformer, Transformer
from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.model.masks import make_sequence_lengths
from miniformer.model.outputs import Recorder
from tests.kit import tiny_model

POSITIONS = ["rotary", "learned", "sinusoidal", "alibi", "t5_relative", "none"]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
MASK = torch.tensor([[True] * 6, [False, False, True, True, True, True]])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def translator(**changes):
    return tiny_model(model=Seq2SeqTransformer, causal=False, **changes)


@pytest.mark.catches("last_hidden_state_is_not_normalized")
@pytest.mark.parametrize("causal", [True, False])
def test_hidden_states_are_the_inputs_of_each_layer_and_of_the_head(causal):
    model = tiny_model(causal=causal, position="learned", embedding_norm=True)
    seen = []
    for layer in [*model.layers, model.head]:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits, hidden, attentions = model(IDS, MASK, return_hidden=True)
    assert len(hidden) == len(seen) == 3
    assert all(map(torch.equal, hidden, seen))
    assert attentions is None
    assert torch.equal(logits, model(IDS, MASK))


@pytest.mark.catches("attention_weights_of_padding_remain")
def test_attention_weights_are_those_of_plain_attention():
    """Compared with a softmax that is written out, for grouped heads, a bias, and padding."""
    model = tiny_model(position="alibi", n_kv_heads=2, logit_softcap=5.0)
    out = model(IDS, MASK, return_attention=True, return_hidden=True)
    close(out.logits, model(IDS, MASK))
    for layer, x, weights in zip(model.layers, out.hidden_states, out.attentions, strict=False):
        x = layer.attention_norm(x)
        q = layer.attention.q_proj(x).unflatten(2, (4, 4))
        k = layer.attention.k_proj(x).unflatten(2, (2, 4))
        for row, head, query in [(0, 0, 5), (0, 3, 2), (1, 1, 4), (1, 2, 0)]:
            keys = [t for t in range(query + 1) if MASK[row, t] and MASK[row, query]]
            expected = torch.zeros(6)
            if keys:
                scores = torch.stack(
                    [
                        q[row, query, head] @ k[row, t, head // 2] / 2
                        - model.position.slopes[head] * (query - t)
                        for t in keys
                    ]
                )
                expected[keys] = (5 * torch.tanh(scores / 5)).softmax(0)
            close(weights[row, head, query], expected)


def test_attention_weights_with_a_cache_are_over_its_columns():
    model = tiny_model()
    full = model(IDS, return_attention=True).attentions
    cache = model.new_cache(2, 6)
    model(IDS[:, :4], cache=cache)
    step = model(IDS[:, 4:], cache=cache, return_attention=True).attentions
    for all_rows, rows in zip(full, step, strict=True):
        close(rows, all_rows[:, :, 4:])


def test_seq2seq_outputs_have_the_weights_over_the_source():
    model = translator()
    out = model(IDS, IDS[:, :4], MASK, return_attention=True, return_hidden=True)
    close(out.logits, model(IDS, IDS[:, :4], MASK))
    assert [x.shape for x in out.cross_attentions] == [(2, 4, 4, 6)] * 2
    assert all((x[1, :, :, :2] == 0).all() for x in out.cross_attentions)
    assert [len(states) for states in out[1:]] == [3, 2, 2, 3, 2]
    close(out.encoder_hidden_states[-1], model.encode(IDS, MASK).features)


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_recorded_lists_stay_as_they_are_in_the_backward_pass(mode):
    model = tiny_model().train()
    set_activation_checkpointing(model, mode)
    out = model(IDS, return_hidden=True, return_attention=True)
    (out.logits.sum() + out.attentions[0].square().sum()).backward()
    assert (len(out.hidden_states), len(out.attentions)) == (3, 2)


def test_attention_without_weights_is_an_error():
    model = tiny_model()
    model.layers[1].attention.attend = lambda q, k, v, context: q.transpose(1, 2).flatten(2)
    assert len(model(IDS, return_hidden=True).hidden_states) == 3
    with pytest.raises(ValueError, match="1 of 2 layers gave attention weights"):
        model(IDS, return_attention=True)


# Embedded inputs.


@pytest.mark.parametrize("changes", [{}, {"embedding_scale": 4.0}, {"token_types": 2}], ids=str)
def test_embedded_inputs_give_the_logits_of_their_ids(changes):
    model = tiny_model(**changes)
    embedded = model.embedding(IDS)
    assert torch.equal(model(None, MASK, inputs_embeds=embedded), model(IDS, MASK))
    assert torch.equal(model.embed(None, MASK, inputs_embeds=embedded), model.embed(IDS, MASK))


def test_embedded_sources_and_targets_give_the_logits_of_their_ids():
    model = translator(source_vocab_size=11, embedding_scale=4.0)
    source, target = model.source_embedding(IDS), model.embedding(IDS[:, :3])
    expected = model(IDS, IDS[:, :3], MASK)
    out = model(source_mask=MASK, source_embeds=source, target_embeds=target)
    assert torch.equal(out, expected)


def test_embedded_inputs_fill_a_cache():
    model = tiny_model()
    cache = model.new_cache(2, 6)
    model(inputs_embeds=model.embedding(IDS[:, :5]), cache=cache)
    close(model(IDS[:, 5:], cache=cache)[:, 0], model(IDS)[:, 5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either inputs or inputs_embeds"),
        ({"inputs": IDS, "inputs_embeds": torch.zeros(2, 6, 16)}, "either inputs or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(2, 6, 15)}, r"\[B, T, 16\] floats, not torch.float32 \[2"),
        ({"inputs_embeds": IDS}, r"inputs_embeds must be \[B, T, 16\] floats, not torch.int64"),
        ({"inputs_embeds": torch.zeros(1, 33, 16)}, "33 tokens is longer than max_seq_len=32"),
        ({"inputs_embeds": torch.zeros(2, 3, 16), "attention_mask": MASK}, r"must be \[2, 3\]"),
    ],
)
def test_embedded_inputs_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**options)


# Positions.


@pytest.mark.parametrize("position", POSITIONS)
def test_given_positions_replace_the_derived_ones(position):
    """Those that follow from the mask give the same logits."""
    model = tiny_model(position=position)
    derived = (MASK.cumsum(1) - 1).clamp_min(0)
    assert torch.equal(model(IDS, MASK, positions=derived), model(IDS, MASK))


def test_learned_positions_are_read_at_given_positions():
    model = tiny_model(position="learned")
    positions = torch.tensor([[7, 7, 0, 1, 31, 2], [5, 4, 3, 2, 1, 0]])
    expected = model(IDS, positions=positions)
    rows = []
    for ids, row in zip(IDS, positions, strict=True):  # a table whose first rows are these
        shifted = tiny_model(position="learned")
        shifted.position.weight.data[:6] = model.position.weight.data[row]
        rows.append(shifted(ids[None])[0])
    close(torch.stack(rows), expected)


def test_biases_and_rotations_are_those_of_given_positions():
    """Doubled distances are those of doubled slopes; equal positions have no order."""
    spread = 2 * torch.arange(6).expand(2, 6)
    model, steeper = tiny_model(position="alibi"), tiny_model(position="alibi")
    steeper.position.slopes = [2 * slope for slope in steeper.position.slopes]
    close(model(IDS, positions=spread), steeper(IDS))
    for position in ("rotary", "t5_relative", "alibi"):
        model, without = tiny_model(position=position), tiny_model(position="none")
        without.load_state_dict(model.state_dict(), strict=False)
        close(model(IDS, positions=spread * 0 + 9), without(IDS))


@pytest.mark.catches("mask_follows_given_positions")
@pytest.mark.parametrize("window", [None, 2])
def test_given_positions_do_not_change_the_mask(window):
    """A later token changes no earlier output, though its position is smaller."""
    model = tiny_model(sliding_window=window)
    positions = torch.arange(6).flip(0).expand(2, 6)
    changed = IDS.clone()
    changed[:, 4] = 0
    before, after = (model(ids, positions=positions) for ids in (IDS, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
def test_given_positions_with_a_cache(position):
    model = tiny_model(position=position)
    positions = torch.tensor([[4, 5, 6, 9, 10, 11], [0, 2, 4, 6, 8, 10]])
    expected, cache = model(IDS, positions=positions), model.new_cache(2, 6)
    parts = zip(IDS.split(2, 1), positions.split(2, 1), strict=True)
    close(torch.cat([model(x, positions=p, cache=cache) for x, p in parts], 1), expected)


def test_given_positions_of_a_source_and_a_target():
    model = translator(position="learned")
    offset = torch.arange(6).expand(2, 6) + 5
    shifted = translator(position="learned")
    for stack in (shifted.encoder, shifted.decoder):
        stack.position.weight.data[:6] = stack.position.weight.data[5:11].clone()
    expected = shifted(IDS, IDS)
    close(model(IDS, IDS, source_positions=offset, target_positions=offset), expected)


@pytest.mark.parametrize(
    ("options", "positions", "message"),
    [
        ({}, torch.zeros(2, 5).long(), r"positions must be integers \[2, 6\]"),
        ({}, torch.zeros(2, 6), r"positions must be integers \[2, 6\], .* not torch.float32"),
        ({}, IDS - 9, "positions must be at least 0; found -8 to 0"),
        ({"position": "learned"}, IDS + 26, "at least 0 and below max_seq_len=32; found 27 to 35"),
    ],
)
def test_given_positions_are_checked(options, positions, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**options)(IDS, positions=positions)


def test_given_positions_with_a_cache_and_a_bias_are_an_error():
    model = tiny_model(position="alibi")
    with pytest.raises(ValueError, match="exclude each other with ALiBiPosition"):
        model(IDS, positions=IDS, cache=model.new_cache(2, 6))


@pytest.mark.catches("lengths_ignore_given_positions")
def test_sequence_lengths_of_given_positions():
    """Rotary scaling by length sees the largest position of each sequence, as transformers."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        positions = torch.randint(0, 40, (3, 8), generator=generator)
        mask = torch.rand(3, 8, generator=generator) > 0.3
        segments = torch.randint(1, 4, (3, 8), generator=generator)
        for given_mask in (None, mask):
            for given_segments in (None, segments):
                actual = make_sequence_lengths(
                    8,
                    attention_mask=given_mask,
                    segment_ids=given_segments,
                    positions=positions,
                    device=positions.device,
                ).expand(3, 8)
                for row in range(3):
                    for t in range(8):
                        own = [
                            int(positions[row, s])
                            for s in range(8)
                            if (given_mask is None or mask[row, s])
                            and (given_segments is None or segments[row, s] == segments[row, t])
                        ]
                        if own and (given_mask is None or mask[row, t]):
                            assert actual[row, t] == max(own) + 1


# Parts of a stack.


@pytest.mark.catches("later_layers_embed_positions_again")
@pytest.mark.parametrize("changes", [{"position": "learned"}, {"embedding_norm": True}], ids=str)
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_layers_in_two_parts_are_the_stack(stop, changes):
    model = tiny_model(**changes)
    x, recorder = model.embedding(IDS), Recorder()
    part = model.run_layers(x, attention_mask=MASK, stop=stop, recorder=recorder)
    out = model.run_layers(part, attention_mask=MASK, start=stop, recorder=recorder)
    full = model(IDS, MASK, return_hidden=True, return_attention=True)
    assert torch.equal(out, full.hidden_states[-1])
    assert torch.equal(part, full.hidden_states[stop]) or stop == 2
    assert all(map(torch.equal, recorder.hidden_states, full.hidden_states))
    assert all(map(torch.equal, recorder.attentions, full.attentions))


@pytest.mark.parametrize("window", [None, 2])
def test_layers_in_two_parts_fill_one_cache(window):
    model = tiny_model(sliding_window=window, n_layers=3)
    caches = [model.new_cache(2, 6) for _ in range(2)]
    for ids, mask in zip(IDS.split(3, 1), MASK.split(3, 1), strict=True):
        full = model.features(ids, mask, cache=caches[0])
        options = {"attention_mask": mask, "cache": caches[1]}
        part = model.run_layers(model.embedding(ids), stop=1, **options)
        part = model.run_layers(part, start=1, stop=2, **options)
        assert torch.equal(model.run_layers(part, start=2, **options), full)


def test_layers_of_a_decoder_in_two_parts():
    model = translator()
    memory, x = model.encode(IDS, MASK), model.embedding(IDS)
    part = model.decoder.run_layers(x, memory=memory, stop=1)
    out = model.decoder.run_layers(part, memory=memory, start=1)
    assert torch.equal(out, model.features(IDS, memory))


def test_early_exit_has_the_outputs_of_a_shallower_model():
    model, shallow = tiny_model(n_layers=3), tiny_model(n_layers=1)
    shallow.load_state_dict(model.state_dict(), strict=False)
    part = model.run_layers(model.embedding(IDS), stop=1)
    assert torch.equal(model.logits(model.final_norm(part)), shallow(IDS))


def test_layers_that_do_not_exist():
    model = tiny_model()
    x = model.embedding(IDS)
    for options in ({"stop": 3}, {"start": -1}):
        with pytest.raises(ValueError, match="start and stop must be 0 to 2, not"):
            model.run_layers(x, **options)
    with pytest.raises(ValueError, match="start continues a call with stop"):
        model.run_layers(x, start=1, cache=model.new_cache(2, 6))


# Packed sequences.


@pytest.mark.catches("packed_vectors_are_those_of_the_row")
@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last", "mean+max"])
def test_vectors_of_packed_sequences_are_those_of_each_alone(pooling):
    model = tiny_model(pooling=pooling, causal=False)
    segments = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    vectors = model.embed(IDS, segment_ids=segments)
    assert vectors.shape == (2, 2, 16)
    for row, number, stop in [(0, 1, slice(0, 2)), (0, 2, slice(2, 5)), (1, 1, slice(0, 4))]:
        close(vectors[row, number - 1], model.embed(IDS[row : row + 1, stop])[0])
    assert model.embed(IDS, segment_ids=segments * 0).shape == (2, 0, 16)


# Heads that are left after slicing.


def prune_heads(model, layer, heads, group=1):
    """Slices the projections of a layer: the query heads `heads` stay."""
    attention = model.layers[layer].attention if isinstance(model, Transformer) else layer
    width = attention.head_dim
    rows = torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])
    groups = sorted({head // group for head in heads})
    kv_rows = torch.cat([torch.arange(g * width, (g + 1) * width) for g in groups])
    for name, retained in (("q_proj", rows), ("k_proj", kv_rows), ("v_proj", kv_rows)):
        linear = getattr(attention, name)
        linear.weight = torch.nn.Parameter(linear.weight[retained])
        linear.bias = torch.nn.Parameter(linear.bias[retained])
    attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, rows])
    if attention.sinks is not None:
        attention.sinks = torch.nn.Parameter(attention.sinks[list(heads)])
    attention.kept_heads = tuple(heads)


@pytest.mark.catches("pruned_layer_has_the_heads_of_the_config")
@pytest.mark.parametrize("position", ["rotary", "alibi", "t5_relative"])
@pytest.mark.parametrize(("kv_heads", "heads"), [(4, [0, 3]), (2, [2, 3])])
@torch.no_grad()
def test_pruned_heads_are_those_with_zero_outputs(position, kv_heads, heads):
    options = {"position": position, "n_kv_heads": kv_heads, "attention_sinks": True}
    model, expected = tiny_model(**options), tiny_model(**options)
    dropped = [column for column in range(16) if column // 4 not in heads]
    expected.layers[1].attention.o_proj.weight[:, dropped] = 0
    prune_heads(model, 1, heads, 4 // kv_heads)
    attention = model.layers[1].attention
    assert (attention.n_heads, attention.kv_heads) == (2, 2 if kv_heads == 4 else 1)
    close(model(IDS, MASK), expected(IDS, MASK))
    cache = model.new_cache(2, 6)
    steps = zip(IDS.split(2, 1), MASK.split(2, 1), strict=True)
    close(torch.cat([model(*step, cache=cache) for step in steps], 1), expected(IDS, MASK))
    assert model.generate(IDS.tolist(), 4, temperature=0) == expected.generate(
        IDS.tolist(), 4, temperature=0
    )


@torch.no_grad()
def test_pruned_cross_attention_decodes():
    model, expected = translator(), translator()
    expected.decoder.layers[0].cross_attention.o_proj.weight[:, :8] = 0
    prune_heads(model, model.decoder.layers[0].cross_attention, [2, 3])
    close(model(IDS, IDS, MASK), expected(IDS, IDS, MASK))
    rows = IDS.tolist()
    assert model.generate(rows, 4, temperature=0) == expected.generate(rows, 4, temperature=0)
