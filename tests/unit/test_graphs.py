"""Recorded decoding steps: what a recording may hold, and that texts are the same.

Where there is no GPU, a recording is the list of operations that a step did, done again with the
same tensors, as a CUDA graph does them; whatever would make a GPU wait for the CPU is refused.
"""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from miniformer import Seq2SeqTransformer
from miniformer.model import graphs
from tests.kit import tiny_model
from tests.unit.test_native import SHAPES

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
RECORDED = [name for name in SHAPES if name not in ("alibi", "both")]


class NoWaiting(TorchDispatchMode):
    """Refuses what reads a tensor into Python, and tensors made of Python's numbers."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "lift_fresh", "nonzero"), name
        return op(*args, **(kwargs or {}))


@pytest.fixture
def recordings(monkeypatch):
    """Steps are recorded though there is no GPU; counts the recordings."""
    made = []

    def record(step, device):
        for _ in range(2):
            step()
        with NoWaiting():
            step()
        play = make_fx(step)()
        made.append(play)
        return play

    for kind in (type(tiny_model()), Seq2SeqTransformer):
        monkeypatch.setattr(kind, "engine", lambda self, weights: None)
    monkeypatch.setattr(
        graphs, "why_not", lambda model: graphs.changing_part(model) or graphs.unknown_part(model)
    )
    monkeypatch.setattr(graphs, "record", record)
    return made


@pytest.mark.parametrize("shape", RECORDED)
def test_texts_are_those_of_steps_one_by_one(shape, recordings, monkeypatch):
    model = tiny_model(**SHAPES[shape])
    found = [model.generate(PROMPTS, 24, temperature=0), model.generate(PROMPTS[:1], 24, seed=1)]
    assert len(recordings) == 2
    monkeypatch.setattr(type(model), "recorder", lambda self: None)
    assert found == [
        model.generate(PROMPTS, 24, temperature=0),
        model.generate(PROMPTS[:1], 24, seed=1),
    ]


@pytest.mark.parametrize("shape", ["llama", "relative", "post", "heads"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"seed": 2, "num_return_sequences": 2}])
def test_searches_samples_and_sources_too(shape, options, recordings, monkeypatch):
    """Beams exchange their places, and rows that have ended are taken out."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False, **SHAPES[shape])
    end = model.generate([[4]], 6, temperature=0)[0][3]
    options = {**options, "eos_id": end}
    recordings.clear()
    found = model.generate(PROMPTS, 30, **options)
    assert recordings
    monkeypatch.setattr(Seq2SeqTransformer, "recorder", lambda self: None)
    assert found == model.generate(PROMPTS, 30, **options)


def test_a_text_that_slides_is_recorded_again(recordings, monkeypatch):
    model = tiny_model(max_seq_len=40)
    found = model.generate(PROMPTS, 90, temperature=0, slide=True)
    assert len(recordings) > 1
    monkeypatch.setattr(type(model), "recorder", lambda self: None)
    assert found == model.generate(PROMPTS, 90, temperature=0, slide=True)


def test_a_short_text_is_not_worth_a_recording(recordings):
    tiny_model().generate(PROMPTS, 8, temperature=0)
    assert not recordings


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"position": "alibi"}, "its positions are made of numbers on the CPU"),
        ({"logit_softcap": 4.0}, "flex_attention makes a mask anew for each step"),
    ],
)
def test_what_cannot_be_recorded_goes_step_by_step(options, reason, recordings):
    model = tiny_model(**options)
    assert graphs.changing_part(model) == reason
    model.generate(PROMPTS, 24, temperature=0)
    assert not recordings


def test_a_backend_that_cannot_be_recorded():
    model = tiny_model()
    model.layers[1].attention.backend = "flex"
    assert "attention backend flex" in graphs.changing_part(model)
    assert graphs.why_not(model) == "its weights are on cpu"


def test_a_gpu_that_refuses_is_told_once_and_the_text_comes_all_the_same(recordings, monkeypatch):
    model = tiny_model()
    wanted = model.generate(PROMPTS, 24, temperature=0)

    def record(step, device):
        raise RuntimeError("CUDA error: operation not permitted\nCompile with ...")

    monkeypatch.setattr(graphs, "record", record)
    with pytest.warns(graphs.NoGraphsWarning) as told:
        assert model.generate(PROMPTS, 24, temperature=0) == wanted
    (one,) = told
    assert str(one.message).endswith("slower: CUDA error: operation not permitted")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("shape", RECORDED)
def test_on_a_gpu(shape, monkeypatch):
    model = tiny_model(**SHAPES[shape]).cuda()
    found = [model.generate(PROMPTS, 24, temperature=0), model.generate(PROMPTS, 24, num_beams=3)]
    monkeypatch.setattr(type(model), "recorder", lambda self: None)
    assert found == [
        model.generate(PROMPTS, 24, temperature=0),
        model.generate(PROMPTS, 24, num_beams=3),
    ]
