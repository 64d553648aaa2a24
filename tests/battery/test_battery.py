"""Every variant of the model against the plain reference and against itself."""

import copy
import random

import pytest
import torch

from miniformer.config import ConfigError
from miniformer.model.transformer import Transformer
from tests.battery.variants import VARIANTS, fields, name
from tests.kit import filled, tiny_config, tiny_model
from tests.reference import transformer as reference

LENGTH = 9
LAYOUTS = {  # rows of segments: 0 is padding
    "no padding": [[1] * 9, [1] * 9],
    "left padding": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right padding": [[1, 1, 1, 1, 1, 0, 0, 0, 0], [1] * 9],
    "packed": [[1, 1, 1, 2, 2, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 2, 0, 0]],
}

every_variant = pytest.mark.parametrize("row", VARIANTS, ids=name)
causal_variants = pytest.mark.parametrize(
    "row", [row for row in VARIANTS if row["causal"]], ids=name
)


def ids_of(model, batch=2, length=LENGTH):
    return torch.randint(0, model.config.vocab_size, (batch, length))


def expected(model, inputs, segments):
    settings = filled(model.config)
    rows = zip(inputs, segments, strict=True)
    return torch.stack([reference.logits(model.state_dict(), settings, *row) for row in rows])


def close(actual, wanted, real):
    """Compares where tokens are real: what a padded position gives is nobody's business."""
    torch.testing.assert_close(actual[real].double(), wanted[real].double(), rtol=1e-4, atol=1e-4)


@every_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_the_plain_reference(row, layout):
    model = tiny_model(**fields(row))
    segments = torch.tensor(LAYOUTS[layout])
    inputs = ids_of(model)
    wanted = expected(model, inputs, LAYOUTS[layout])
    close(model(inputs, segment_ids=segments), wanted, segments != 0)
    if layout != "packed":
        close(model(inputs, attention_mask=segments != 0), wanted, segments != 0)
    if layout == "no padding":
        close(model(inputs), wanted, segments != 0)


@every_variant
def test_gradients_are_those_of_the_plain_reference(row):
    model = tiny_model(**fields(row))
    segments = LAYOUTS["packed"]
    real = torch.tensor(segments) != 0
    inputs = ids_of(model)
    weight = torch.randn(*real.shape, model.config.output_dim or model.config.vocab_size)
    (model(inputs, segment_ids=torch.tensor(segments)) * weight)[real].sum().backward()
    twin = copy.deepcopy(model).double()
    parameters = dict(twin.named_parameters())
    settings = filled(model.config)
    rows = [reference.logits(parameters, settings, *r) for r in zip(inputs, segments, strict=True)]
    (torch.stack(rows) * weight)[real].sum().backward()
    for (label, parameter), twin_parameter in zip(
        model.named_parameters(), parameters.values(), strict=True
    ):
        assert parameter.grad is not None, f"no gradient reaches {label}"
        # A key bias adds the same to a row's scores, so its gradient is 0 but for rounding.
        scale = max(1.0, float(twin_parameter.grad.abs().max()))
        torch.testing.assert_close(
            parameter.grad.double() / scale, twin_parameter.grad / scale, rtol=1e-3, atol=1e-4
        )


@every_variant
def test_size_is_what_the_config_says(row):
    model = tiny_model(**fields(row))
    assert model.config.num_params() == sum(p.numel() for p in model.parameters())


@every_variant
def test_saving_and_loading_changes_nothing(row, tmp_path):
    model = tiny_model(**fields(row))
    inputs = ids_of(model)
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(inputs), model(inputs))


@every_variant
def test_a_deep_copy_is_equal_and_independent(row):
    model = tiny_model(**fields(row))
    inputs = ids_of(model)
    before = model(inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(inputs), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(inputs), before)


@every_variant
def test_dropout_is_on_in_training_and_off_in_eval(row):
    model = tiny_model(**fields(row), dropout=0.5)
    inputs = ids_of(model)
    assert torch.equal(model(inputs), model(inputs))
    model.train()
    assert not torch.equal(model(inputs), model(inputs))


@every_variant
def test_a_batch_gives_what_its_rows_give_alone(row):
    model = tiny_model(**fields(row))
    inputs = ids_of(model, batch=3)
    together = model(inputs)
    for index in range(3):
        torch.testing.assert_close(
            model(inputs[index : index + 1])[0], together[index], rtol=1e-4, atol=1e-4
        )


@every_variant
def test_half_precision_keeps_its_type_and_stays_near(row):
    model = tiny_model(**fields(row))
    inputs = ids_of(model)
    wanted = model(inputs)
    out = model.bfloat16()(inputs)
    assert out.dtype == torch.bfloat16
    error = (out.float() - wanted).norm() / wanted.norm()
    assert error < 0.05


@causal_variants
def test_no_later_token_changes_an_earlier_logit(row):
    model = tiny_model(**fields(row))
    inputs = ids_of(model, batch=1)
    before = model(inputs)
    for t in range(1, LENGTH):
        changed = inputs.clone()
        changed[0, t:] = (changed[0, t:] + 1) % model.config.vocab_size
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(after[:, t], before[:, t]), "a token's own logits must move"


@pytest.mark.parametrize("row", [row for row in VARIANTS if not row["causal"]], ids=name)
def test_an_encoder_sees_both_ways(row):
    model = tiny_model(**fields(row))
    inputs = ids_of(model, batch=1)
    changed = inputs.clone()
    changed[0, -1] = (changed[0, -1] + 1) % model.config.vocab_size
    assert not torch.allclose(model(changed)[:, 0], model(inputs)[:, 0])


@causal_variants
@pytest.mark.parametrize("chunks", [[1] * 9, [9], [4, 1, 4], [1, 5, 3]], ids=str)
@pytest.mark.parametrize("padding", [0, 3])
def test_cached_decoding_gives_the_uncached_logits(row, chunks, padding):
    model = tiny_model(**fields(row))
    inputs = ids_of(model)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :padding] = False
    whole = model(inputs, attention_mask=real)
    cache = model.new_cache(2, LENGTH)
    parts = [
        model(part, attention_mask=mask if padding else None, cache=cache)
        for part, mask in zip(inputs.split(chunks, 1), real.split(chunks, 1), strict=True)
    ]
    close(torch.cat(parts, 1), whole, real)
    assert cache.nbytes == model.config.cache_bytes(2, LENGTH)


@causal_variants
def test_padding_inside_the_cache_takes_no_position(row):
    """A right-padded prompt, then more tokens: the padding stays in the cache and must not be
    seen."""
    model = tiny_model(**fields(row))
    inputs = ids_of(model)
    alone = model(inputs[:1, [0, 1, 2, 5, 6]])
    cache = model.new_cache(2, 7)
    prompt_mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    model(inputs[:, :5], attention_mask=prompt_mask, cache=cache)
    continued = model(inputs[:, 5:7], cache=cache)
    torch.testing.assert_close(continued[0], alone[0, 3:], rtol=1e-4, atol=1e-4)


def test_a_model_that_is_not_causal_has_no_cache():
    with pytest.raises(ConfigError, match="causal must be true for cached decoding"):
        tiny_model(causal=False).new_cache(1, 4)


def greedy_by_hand(model, prompt, steps):
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize(
    "row", [row for row in VARIANTS if row["causal"] and row["head"] != "output_dim"], ids=name
)
def test_generate_is_the_uncached_loop_for_prompts_of_any_lengths(row):
    model = tiny_model(**fields(row))
    draw = random.Random(0)
    prompts = [[draw.randrange(31) for _ in range(length)] for length in (1, 7, 3)]
    together = model.generate(prompts, 6, temperature=0)
    assert together == [greedy_by_hand(model, prompt, 6) for prompt in prompts]
    square = torch.tensor([prompts[1], prompts[1][::-1]])
    assert model.generate(square, 6, temperature=0).tolist() == [
        greedy_by_hand(model, prompt, 6) for prompt in square.tolist()
    ]


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


def test_flops_are_those_of_the_matrix_products():
    """Counted by torch's own counter, on the full attention of an encoder."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for changes in ({}, {"activation": "swiglu"}, {"n_kv_heads": 1}, {"output_dim": 3}):
        config = tiny_config(causal=False, **changes)
        model = Transformer(config).eval()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.zeros(1, LENGTH, dtype=torch.long))
        assert counter.get_total_flops() == LENGTH * config.flops_per_token(LENGTH)
