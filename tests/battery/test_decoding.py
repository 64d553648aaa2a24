"""Decoding with a cache gives the logits of a pass without one, for every variant that decodes."""

import random

import pytest
import torch

from miniformer.config import ConfigError
from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.battery.models import (
    LAYOUTS,
    LENGTH,
    SOURCE,
    SOURCES,
    build,
    call,
    close,
    each_with,
    ids_of,
    of,
    takes_matmul,
)
from tests.battery.variants import VARIANTS, few, fields, masked, name
from tests.kit import tiny_model


def cached(model, inputs, real, chunks, kind, padded):
    """Logits of a model that reads its tokens in chunks, and the cache."""
    cache, parts = model.new_cache(2, LENGTH, kind), []
    cache.final_lengths = real.sum(1, keepdim=True)
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


DECODERS = [row for row in VARIANTS if row["architecture"] != "encoder"]
CHUNKS = {
    "no padding": [[1] * 9, [9], [4, 1, 4], [1, 5, 3]],
    "padding": [[9], [4, 1, 1, 3], [1, 5, 3]],
}
RAGGED = [LAYOUTS["left padding"][0], LAYOUTS["right padding"][0]]


# Layers without a window have the same cache in "window" and "full". The kind int8 changes what is
# stored, whatever the pair of options; a backend changes how scores and masks are computed.
# Scores that `matmul` does not support are in test_reference_gradients.py.
@pytest.mark.parametrize(
    ("row", "kind", "backend"),
    [
        *each_with(DECODERS, ("window", "auto")),
        *each_with([row for row in DECODERS if row["window"] != "nowindow"], ("full", "auto")),
        *each_with(few(DECODERS), ("int8", "auto")),
        *each_with(few(DECODERS, masked), ("window", "plain"), ("full", "plain")),
        *each_with(
            few([row for row in DECODERS if takes_matmul(row)], masked),
            ("window", "matmul"), ("full", "matmul"),
        ),
    ],
)  # fmt: skip
def test_cached_decoding_matches_uncached_logits(row, kind, backend):
    model = build(row)
    inputs = ids_of(model)
    for layout, rows in (("no padding", LAYOUTS["no padding"]), ("padding", RAGGED)):
        segments = torch.tensor(rows)
        with torch.no_grad():
            set_attention_backend(model, "auto")
            full = call(model, inputs, segments)
            set_attention_backend(model, backend)
            for chunks in CHUNKS[layout] if backend == "auto" else CHUNKS[layout][-2:]:
                parts, cache = cached(
                    model, inputs, segments != 0, chunks, kind, layout == "padding"
                )
                if kind == "int8":
                    error = (parts - full)[segments != 0].norm() / full[segments != 0].norm()
                    assert error < 0.05
                else:
                    close(parts, full, segments != 0)
        source_len = SOURCE if row["architecture"] == "seq2seq" else None
        assert cache.nbytes == model.config.cache_bytes(2, LENGTH, kind=kind, source_len=source_len)


@of("causal")
@pytest.mark.parametrize("kind", ["window", "full"])
def test_padding_in_the_cache_takes_no_position(row, kind):
    """A right-padded prompt, then more tokens: the padding stays in the cache, masked."""
    model = build(row)
    inputs = ids_of(model)
    alone = model(inputs[:1, [0, 1, 2, 5, 6]])
    cache = model.new_cache(2, 7, kind)
    cache.final_lengths = torch.tensor([[5], [7]])
    prompt_mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    model(inputs[:, :5], attention_mask=prompt_mask, cache=cache)
    continued = model(inputs[:, 5:7], cache=cache)
    torch.testing.assert_close(continued[0], alone[0, 3:], rtol=1e-4, atol=1e-4)


def test_non_causal_model_has_no_cache():
    with pytest.raises(ConfigError, match="causal must be true for cached decoding"):
        tiny_model(causal=False).new_cache(1, 4)


def greedy_by_hand(model, prompt, steps):
    ids, final_length = list(prompt), len(prompt) + steps
    dynamic = (model.config.rotary_scaling or {}).get("type") in ("dynamic", "longrope")
    for _ in range(steps):
        text = ids
        if dynamic:  # it depends on the final length, from the first token on
            text = ids + [0] * (final_length - len(ids))
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
def test_generate_matches_the_uncached_loop_for_prompts_of_any_lengths(row):
    model = build(row)
    draw = random.Random(0)
    prompts = [[draw.randrange(31) for _ in range(length)] for length in (1, 7, 3)]
    together = model.generate(prompts, 6, temperature=0)
    assert together == [greedy_by_hand(model, prompt, 6) for prompt in prompts]
    square = torch.tensor([prompts[1], prompts[1][::-1]])
    assert model.generate(square, 6, temperature=0).tolist() == [
        greedy_by_hand(model, prompt, 6) for prompt in square.tolist()
    ]
