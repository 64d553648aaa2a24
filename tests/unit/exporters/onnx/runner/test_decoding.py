"""Sampling of the runner has the distribution of the softmax after temperature and filters."""

import numpy as np
import pytest

from miniformer.exporters.onnx.runner.decoding import (
    RunError,
    choose,
    is_final,
    resolve_options,
)

LOGITS = np.array([2.0, 1.5, 1.0, 0.2, -0.5, -3.0])
COUNT = 20_000
CRITICAL = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}  # chi-square, probability 0.001


def expected(temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The distribution, in plain Python."""
    weights = [np.exp(x / temperature) for x in LOGITS]
    order = sorted(range(len(weights)), key=lambda n: -weights[n])[:top_k]
    total = sum(weights[n] for n in order)
    p = {n: weights[n] / total for n in order}
    if top_p is not None:
        nucleus, mass = {}, 0.0
        for n in order:
            if mass < top_p:
                nucleus[n] = p[n]
            mass += p[n]
        p = nucleus
    if min_p is not None:
        p = {n: x for n, x in p.items() if x >= min_p * max(p.values())}
    return {n: x / sum(p.values()) for n, x in p.items()}


@pytest.mark.catches("temperature_after_the_filters")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 3.0, "top_p": 0.7},
        {"temperature": 0.7, "min_p": 0.3},
        {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
    ],
)
def test_samples_have_the_distribution(settings):
    options = resolve_options({}, settings)
    uniform = np.random.default_rng(0).random(COUNT)
    tokens = choose(np.tile(LOGITS.astype(np.float32), (COUNT, 1)), options, uniform)
    counts, p = np.bincount(tokens, minlength=len(LOGITS)), expected(**settings)
    assert {n for n in range(len(LOGITS)) if counts[n]} <= p.keys()
    square = sum((counts[n] - COUNT * x) ** 2 / (COUNT * x) for n, x in p.items())
    assert square < CRITICAL[len(p) - 1]


def test_temperature_zero_takes_the_likeliest():
    options = resolve_options({}, {"temperature": 0.0, "top_k": 2})
    assert choose(LOGITS[None], options, np.array([0.99])).tolist() == [0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1.0}, "temprature is no option of run.py"),
        ({"top_k": 0}, "top_k must be from 1 to inf, not 0"),
        ({"top_k": True}, "top_k must be of type int, not True"),
        ({"temperature": "hot"}, "temperature must be of type float, not 'hot'"),
        ({"num_beams": 2, "top_k": 3}, "num_beams=2 does not sample; leave top_k out"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 needs num_beams=3"),
        ({"temperature": 0.0, "num_return_sequences": 3}, "needs num_beams=3, or sampling"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(RunError, match=message):
        resolve_options({}, given)


@pytest.mark.catches("beam_search_ends_early")
def test_a_search_ends_when_no_sum_divided_by_its_greatest_length_is_better():
    options = resolve_options({}, {"num_beams": 2, "max_new_tokens": 10})
    running, ended = [(-1.0, []), (-2.0, [])], [(-0.05, []), (-0.12, [])]
    assert not is_final(running, ended, 4, options)  # -1 / 10 is above -0.12
    assert is_final(running, [(-0.05, []), (-0.09, [])], 4, options)
    assert not is_final(running, ended[:1], 4, options)
    assert is_final(running, ended, 4, {**options, "length_penalty": 0.0})  # -1 is below
    assert is_final(running, ended, 4, {**options, "length_penalty": -1.0})  # -5 is below
