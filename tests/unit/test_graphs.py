"""Recorded decoding steps: what a recording may hold, and that texts are the same.

Where there is no GPU, a recording is the list of operations that a step did, done again with the
same tensors, as a CUDA graph does them; whatever would make a GPU wait for the CPU is refused.
"""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from miniformer import Seq2SeqTransformer
from miniformer.config import UserError
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


@pytest.mark.catches("recorded_step_counts_its_own_column")
@pytest.mark.parametrize("shape", RECORDED)
def test_texts_are_those_of_steps_one_by_one(shape, recordings):
    model = tiny_model(**SHAPES[shape])
    for options in ({"temperature": 0}, {"seed": 1}):
        found = model.generate(PROMPTS, 24, cuda_graph=True, **options)
        assert found == model.generate(PROMPTS, 24, **options)
    assert len(recordings) == 2


@pytest.mark.parametrize("shape", ["llama", "relative", "post", "heads"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"seed": 2, "num_return_sequences": 2}])
def test_searches_samples_and_sources_too(shape, options, recordings):
    """Beams exchange their places, and rows that have ended are taken out."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False, **SHAPES[shape])
    end = model.generate([[4]], 6, temperature=0)[0][3]
    options = {**options, "eos_id": end}
    found = model.generate(PROMPTS, 30, cuda_graph=True, **options)
    assert recordings
    assert found == model.generate(PROMPTS, 30, **options)


def test_a_text_that_slides_is_recorded_again(recordings):
    model = tiny_model(max_seq_len=40)
    found = model.generate(PROMPTS, 90, temperature=0, slide=True, cuda_graph=True)
    assert len(recordings) > 1
    assert found == model.generate(PROMPTS, 90, temperature=0, slide=True)


def test_a_short_text_is_not_worth_a_recording(recordings):
    tiny_model().generate(PROMPTS, 8, temperature=0, cuda_graph=True)
    assert not recordings


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"position": "alibi"}, "its positions are made of numbers on the CPU"),
        ({"logit_softcap": 4.0}, "flex_attention makes a mask anew for each step"),
    ],
)
def test_what_cannot_be_recorded_is_told(options, reason, recordings):
    with pytest.raises(UserError, match=f"cuda_graph=true is not for this model: {reason}"):
        tiny_model(**options).generate(PROMPTS, 24, cuda_graph=True)


def test_neither_can_what_is_on_a_cpu_or_a_backend_that_makes_masks():
    model = tiny_model()
    with pytest.raises(UserError, match="its weights are on cpu; leave it out"):
        model.generate(PROMPTS, 24, cuda_graph=True)
    model.layers[1].attention.backend = "flex"
    assert "attention backend flex" in graphs.changing_part(model)


def test_a_gpu_that_refuses_is_told(recordings, monkeypatch):
    def record(step, device):
        raise RuntimeError("CUDA error: operation not permitted\nCompile with ...")

    monkeypatch.setattr(graphs, "record", record)
    with pytest.raises(UserError, match="the GPU refuses: CUDA error: operation not permitted; le"):
        tiny_model().generate(PROMPTS, 24, temperature=0, cuda_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("shape", RECORDED)
def test_on_a_gpu(shape):
    model = tiny_model(**SHAPES[shape]).cuda()
    for options in ({"temperature": 0}, {"num_beams": 3}):
        found = model.generate(PROMPTS, 24, cuda_graph=True, **options)
        assert found == model.generate(PROMPTS, 24, **options)
