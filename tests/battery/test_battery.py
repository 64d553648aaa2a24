"""Every variant of both models against the plain reference and against itself.

`matrix.py` says which combinations are left out, and what a user is told there.
"""

import copy
import random

import pytest
import torch

from miniformer.config import ConfigError, UserError
from miniformer.model.checkpointing import kept_bytes
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.stack import set_activation_checkpointing, set_attention_backend
from miniformer.model.transformer import Transformer
from tests.battery.variants import VARIANTS, fields, name
from tests.kit import filled, tiny_config, tiny_model
from tests.reference import transformer as reference

LENGTH, SOURCE = 9, 7
LAYOUTS = {  # rows of segments: 0 is padding
    "no padding": [[1] * 9, [1] * 9],
    "left padding": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right padding": [[1, 1, 1, 1, 1, 0, 0, 0, 0], [1] * 9],
    "packed": [[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 2, 0, 0]],
}
SOURCES = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])  # the same for every target layout


def of(*architectures):
    rows = [row for row in VARIANTS if row["architecture"] in architectures]
    return pytest.mark.parametrize("row", rows, ids=name)


every_variant = pytest.mark.parametrize("row", VARIANTS, ids=name)
stacked, translating = of("encoder", "causal"), of("seq2seq")
decoding = of("causal", "seq2seq")


def build(row, **more):
    changes = {"causal": False, **fields(row), **more}
    if row["architecture"] == "seq2seq":
        return tiny_model(model=Seq2SeqTransformer, **changes)
    return tiny_model(**changes)


def ids_of(model, batch=2, length=LENGTH):
    return torch.randint(0, model.config.vocab_size, (batch, length))


def call(model, inputs, segments, *, as_mask=False):
    """Logits of both kinds of model, with inputs that are drawn from the first ids."""
    if isinstance(model, Seq2SeqTransformer):
        return model(inputs[:, :SOURCE], inputs, SOURCES.bool(), segments != 0)
    types = inputs % model.config.token_types if model.config.token_types else None
    if as_mask:
        return model(inputs, segments != 0, token_types=types)
    return model(inputs, segment_ids=segments, token_types=types)


def expected(model, inputs, segments, weights=None):
    weights, settings = weights or model.state_dict(), filled(model.config)
    rows = []
    for b, (ids, row) in enumerate(zip(inputs, segments, strict=True)):
        if isinstance(model, Seq2SeqTransformer):
            source = ids[:SOURCE], SOURCES[b].tolist()
            rows.append(reference.seq2seq_logits(weights, settings, *source, ids, row))
        else:
            types = ids % settings["token_types"] if settings["token_types"] else None
            rows.append(reference.logits(weights, settings, ids, row, types))
    return torch.stack(rows)


def layouts_of(row):
    return [name for name in LAYOUTS if name != "packed" or row["architecture"] != "seq2seq"]


def takes_matmul(row):
    return row["scores"] in ("scores", "scale") and row["position"] not in ("alibi", "relative")


def close(actual, wanted, real):
    """Compares where tokens are real: what a padded position gives is nobody's business."""
    torch.testing.assert_close(actual[real].double(), wanted[real].double(), rtol=1e-4, atol=1e-4)


@every_variant
def test_logits_are_those_of_the_plain_reference(row):
    model = build(row)
    inputs = ids_of(model)
    for layout in layouts_of(row):
        segments = torch.tensor(LAYOUTS[layout])
        with torch.no_grad():
            wanted = expected(model, inputs, LAYOUTS[layout])
            for backend in ("auto", "plain", "flex", "matmul"):
                if backend == "flex" and row["architecture"] == "seq2seq":
                    continue  # refused: see test_backends.py
                if backend == "matmul" and not takes_matmul(row):
                    continue
                set_attention_backend(model, backend)
                close(call(model, inputs, segments), wanted, segments != 0)
                if layout != "packed":
                    close(call(model, inputs, segments, as_mask=True), wanted, segments != 0)
    if not isinstance(model, Seq2SeqTransformer) and model.type_embedding is None:
        set_attention_backend(model, "auto")
        plain = LAYOUTS["no padding"]
        close(model(inputs), expected(model, inputs, plain), torch.tensor(plain) != 0)


@every_variant
@pytest.mark.parametrize("backend", ["auto", "plain", "matmul"])
def test_gradients_are_those_of_the_plain_reference(row, backend):
    model = build(row)
    set_attention_backend(model, backend)
    if backend == "matmul" and not takes_matmul(row):
        with pytest.raises(UserError, match="attention backend 'matmul': it has no"):
            call(model, ids_of(model), torch.tensor(LAYOUTS["no padding"]))
        return
    segments = LAYOUTS["left padding" if row["architecture"] == "seq2seq" else "packed"]
    real = torch.tensor(segments) != 0
    inputs = ids_of(model)
    weight = torch.randn(*real.shape, model.config.output_dim or model.config.vocab_size)
    (call(model, inputs, torch.tensor(segments)) * weight)[real].sum().backward()
    twin = copy.deepcopy(model).double()
    parameters = dict(twin.named_parameters())
    (expected(model, inputs, segments, parameters) * weight)[real].sum().backward()
    for (label, parameter), other in zip(
        model.named_parameters(), parameters.values(), strict=True
    ):
        assert parameter.grad is not None, f"no gradient reaches {label}"
        # A key bias adds the same to a row's scores, so its gradient is 0 but for rounding.
        scale = max(1.0, float(other.grad.abs().max()))
        torch.testing.assert_close(
            parameter.grad.double() / scale, other.grad / scale, rtol=1e-3, atol=1e-4
        )


@every_variant
@pytest.mark.parametrize("how", ["selective", "full"])
def test_checkpointed_layers_give_the_same_gradients_and_keep_less(row, how):
    model = build(row).train()
    segments = torch.tensor(LAYOUTS["left padding"])
    inputs = ids_of(model)
    gradients, kept = [], []
    for each in ("none", how):
        set_activation_checkpointing(model, each)
        kept.append(kept_bytes(lambda: call(model, inputs, segments)))
        model.zero_grad()
        call(model, inputs, segments).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    assert kept[1] < kept[0]


@every_variant
def test_size_is_what_the_config_says(row):
    model = build(row)
    seq2seq = row["architecture"] == "seq2seq"
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model.config.num_params(seq2seq=seq2seq) == counted


@every_variant
def test_saving_and_loading_changes_nothing(row, tmp_path):
    model = build(row)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["right padding"])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(call(loaded, inputs, segments), call(model, inputs, segments))


@every_variant
def test_a_deep_copy_is_equal_and_independent(row):
    model = build(row)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["no padding"])
    before = call(model, inputs, segments)
    twin = copy.deepcopy(model)
    assert torch.equal(call(twin, inputs, segments), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(call(model, inputs, segments), before)


@every_variant
def test_a_batch_gives_what_its_rows_give_alone(row):
    """Rows alone have no padding at all."""
    model = build(row)
    inputs = ids_of(model)
    segments = torch.tensor(LAYOUTS["left padding"])
    together = call(model, inputs, segments)
    if isinstance(model, Seq2SeqTransformer):
        source = inputs[:1, :SOURCE]
        alone = model(source, inputs[:1, 3:])
    else:
        types = inputs % model.config.token_types if model.config.token_types else None
        alone = model(inputs[:1, 3:], token_types=None if types is None else types[:1, 3:])
    torch.testing.assert_close(together[:1, 3:], alone, rtol=1e-4, atol=1e-4)


@every_variant
def test_dropout_is_off_in_eval_and_on_in_training(row):
    model = build(row, dropout=0.5)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["no padding"])
    before = call(model, inputs, segments)
    assert torch.equal(call(model, inputs, segments), before)
    model.train()
    assert not torch.equal(call(model, inputs, segments), call(model, inputs, segments))


def off(one, other):
    """How far one tensor is from another, as a share of that."""
    return float((one - other).detach().norm() / other.detach().norm())


@every_variant
@pytest.mark.parametrize("grad", [True, False])  # which decides the backend
def test_bfloat16_stays_bfloat16_and_stays_near(row, grad):
    model = build(row)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["left padding"])
    with torch.set_grad_enabled(grad):
        # Both round the weights, so what is near is the model with rounded ones.
        wanted = call(model.bfloat16().float(), inputs, segments)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = call(model, inputs, segments)
        out = call(model.bfloat16(), inputs, segments)
    assert out.dtype == torch.bfloat16
    real = segments != 0
    for each in (mixed, out):
        # 0.11 was seen: how a CPU sums bfloat16 products differs; other weights are 1 off.
        assert off(each.float()[real], wanted[real]) < 0.2


@every_variant
def test_gradients_under_autocast_stay_near(row):
    model = build(row)
    inputs, segments = ids_of(model), torch.tensor(LAYOUTS["left padding"])
    model = model.bfloat16().float()  # as autocast rounds them: that alone moves one by 0.8
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = call(model, inputs, segments)
        out.float()[segments != 0].square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert off(gradients[1], gradients[0]) < 0.5  # a gradient of something else is 1 off


@decoding
def test_no_later_token_changes_an_earlier_logit(row):
    model = build(row)
    inputs = ids_of(model, batch=2)
    segments = torch.tensor(LAYOUTS["no padding"])
    source = inputs[:, :SOURCE]

    def logits(target):
        if isinstance(model, Seq2SeqTransformer):
            return model(source, target, SOURCES.bool())
        return call(model, target, segments)

    before = logits(inputs)
    for t in range(1, LENGTH):
        changed = inputs.clone()
        changed[:, t:] = (changed[:, t:] + 1) % model.config.vocab_size
        after = logits(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, t], before[:, t]), "a token's own logits must move"


@of("encoder", "seq2seq")
def test_an_encoder_sees_both_ways(row):
    model = build(row)
    inputs = ids_of(model, batch=2)
    changed = inputs.clone()
    far = 1 if row["window"] != "nowindow" else SOURCE - 1  # within every window
    changed[:, far] = (changed[:, far] + 1) % model.config.vocab_size

    def features(ids):
        if isinstance(model, Seq2SeqTransformer):
            return model.encode(ids[:, :SOURCE]).features
        return model.features(ids)

    assert not torch.allclose(features(changed)[:, 0], features(inputs)[:, 0])


def cached(model, inputs, real, chunks, kind, padded):
    """Logits of a model that is given its tokens in chunks, and the cache."""
    cache, parts = model.new_cache(2, LENGTH, kind), []
    cache.spans = real.sum(1, keepdim=True)
    memory = None
    if isinstance(model, Seq2SeqTransformer):
        memory = model.encode(inputs[:, :SOURCE], SOURCES.bool())
    for ids, mask in zip(inputs.split(chunks, 1), real.split(chunks, 1), strict=True):
        mask = mask if padded else None
        if memory is not None:
            parts.append(model.logits(model.features(ids, memory, mask, cache=cache)))
        else:
            types = ids % model.config.token_types if model.config.token_types else None
            parts.append(model(ids, mask, token_types=types, cache=cache))
    return torch.cat(parts, 1), cache


@decoding
@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("window", "auto"), ("full", "auto"), ("int8", "auto"),
        ("window", "plain"), ("full", "plain"), ("window", "matmul"), ("full", "matmul"),
    ],
)  # fmt: skip
def test_cached_decoding_gives_the_uncached_logits(row, kind, backend):
    if backend == "matmul" and not takes_matmul(row):
        return
    model = build(row)
    inputs = ids_of(model)
    for layout in ("no padding", "left padding", "right padding"):
        segments = torch.tensor(LAYOUTS[layout])
        with torch.no_grad():
            set_attention_backend(model, "auto")
            whole = call(model, inputs, segments)
            set_attention_backend(model, backend)
            every = [[1] * 9, [9], [4, 1, 4], [1, 5, 3]]
            for chunks in every if backend == "auto" else every[2:]:
                parts, cache = cached(
                    model, inputs, segments != 0, chunks, kind, layout != "no padding"
                )
                if kind == "int8":
                    error = (parts - whole)[segments != 0].norm() / whole[segments != 0].norm()
                    assert error < 0.05
                else:
                    close(parts, whole, segments != 0)
        source_len = SOURCE if row["architecture"] == "seq2seq" else None
        assert cache.nbytes == model.config.cache_bytes(2, LENGTH, kind=kind, source_len=source_len)


@of("causal")
@pytest.mark.parametrize("kind", ["window", "full"])
def test_padding_inside_the_cache_takes_no_position(row, kind):
    """A right-padded prompt, then more tokens: the padding stays in the cache and must not be
    seen."""
    model = build(row)
    inputs = ids_of(model)
    alone = model(inputs[:1, [0, 1, 2, 5, 6]])
    cache = model.new_cache(2, 7, kind)
    cache.spans = torch.tensor([[5], [7]])
    prompt_mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    model(inputs[:, :5], attention_mask=prompt_mask, cache=cache)
    continued = model(inputs[:, 5:7], cache=cache)
    torch.testing.assert_close(continued[0], alone[0, 3:], rtol=1e-4, atol=1e-4)


def test_a_model_that_is_not_causal_has_no_cache():
    with pytest.raises(ConfigError, match="causal must be true for cached decoding"):
        tiny_model(causal=False).new_cache(1, 4)


def greedy_by_hand(model, prompt, steps):
    ids, room = list(prompt), len(prompt) + steps
    dynamic = (model.config.rotary_scaling or {}).get("type") in ("dynamic", "longrope")
    for _ in range(steps):
        text = ids
        if dynamic:  # which goes by the length of the whole text, from its first token on
            text = ids + [0] * (room - len(ids))
        ids.append(int(model(torch.tensor([text]))[0, len(ids) - 1].argmax()))
    return ids


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in VARIANTS
        if row["architecture"] == "causal" and "output_dim" not in fields(row)
    ],
    ids=name,
)
def test_generate_is_the_uncached_loop_for_prompts_of_any_lengths(row):
    model = build(row)
    draw = random.Random(0)
    prompts = [[draw.randrange(31) for _ in range(length)] for length in (1, 7, 3)]
    together = model.generate(prompts, 6, temperature=0)
    assert together == [greedy_by_hand(model, prompt, 6) for prompt in prompts]
    square = torch.tensor([prompts[1], prompts[1][::-1]])
    assert model.generate(square, 6, temperature=0).tolist() == [
        greedy_by_hand(model, prompt, 6) for prompt in square.tolist()
    ]


@stacked
def test_a_sequence_as_one_vector(row):
    for pooling in ("mean", "max", "first", "last", "mean+max+first"):
        model = build(row, pooling=pooling)
        inputs = ids_of(model)
        types = inputs % model.config.token_types if model.config.token_types else None
        for layout in ("no padding", "left padding", "right padding"):
            segments, settings = torch.tensor(LAYOUTS[layout]), filled(model.config)
            with torch.no_grad():
                out = model.classify(inputs, segments != 0, token_types=types)
                wanted = [
                    reference.pooled(
                        model.state_dict(), settings, inputs[b], LAYOUTS[layout][b],
                        None if types is None else types[b],
                    )
                    for b in range(2)
                ]  # fmt: skip
            torch.testing.assert_close(out.double(), torch.stack(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("output_dim", [None, 3])
def test_features_in_place_of_tokens(causal, output_dim):
    model = tiny_model(causal=causal, input_dim=7, output_dim=output_dim)
    inputs = torch.randn(2, LENGTH, 7)
    segments = LAYOUTS["packed"]
    real = torch.tensor(segments) != 0
    out = model(inputs, segment_ids=torch.tensor(segments))
    assert out.shape == (2, LENGTH, output_dim or model.config.vocab_size)
    close(out, expected(model, inputs, segments), real)
    assert model.config.num_params() == sum(p.numel() for p in model.parameters())


@pytest.mark.catches("tied_head_is_a_copy")
def test_a_tied_head_is_the_embedding_before_and_after_loading(tmp_path):
    model = tiny_model(tie_embeddings=True)
    model.save_pretrained(tmp_path)
    for candidate in (model, Transformer.from_pretrained(tmp_path), copy.deepcopy(model)):
        inputs = ids_of(candidate)
        with torch.no_grad():
            before = candidate(inputs)
            candidate.embedding.weight[5] *= 2
        absent = ~(inputs == 5).any(1)  # rows whose inputs do not have the changed token
        assert absent.any()
        torch.testing.assert_close(candidate(inputs)[absent][..., 5], 2 * before[absent][..., 5])


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"activation": "swiglu"}, {"n_kv_heads": 1}, {"output_dim": 3},
        {"head": "masked_lm"}, {"head_dim": 6},
    ],
    ids=str,
)  # fmt: skip
def test_flops_are_those_of_the_matrix_products(changes):
    """Counted by torch's own counter, on the full attention of an encoder."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(causal=False, **changes)
    model = Transformer(config).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, LENGTH, dtype=torch.long))
    assert counter.get_total_flops() == LENGTH * config.flops_per_token(LENGTH)


def test_flops_of_two_stacks_are_those_of_the_matrix_products():
    """The decoder's own attention is counted as what a causal mask lets through."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = tiny_config(causal=False, n_decoder_layers=3)
    model = Seq2SeqTransformer(config).eval()
    ids = torch.zeros(1, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids, ids)
    unseen = 3 * 4 * config.d_model * (LENGTH - 1) / 2  # the counter counts what is masked, too
    wanted = LENGTH * (config.flops_per_token(LENGTH, seq2seq=True) + unseen)
    assert counter.get_total_flops() == wanted


@pytest.mark.catches("operations_ignore_the_window")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 9, 20])
def test_flops_of_a_window_count_the_pairs_it_lets_through(causal, window):
    whole = tiny_config(causal=False, n_layers=1)
    config = tiny_config(causal=causal, n_layers=1, sliding_window=window)
    pairs = sum(
        (t - window < s <= t) if causal else abs(s - t) <= window // 2
        for t in range(LENGTH)
        for s in range(LENGTH)
    )
    fewer = (LENGTH * LENGTH - pairs) * 4 * config.d_model
    wanted = whole.flops_per_token(LENGTH) * LENGTH - fewer
    assert LENGTH * config.flops_per_token(LENGTH) == pytest.approx(wanted, abs=LENGTH)
