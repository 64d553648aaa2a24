"""CUDA graph decoding: supported models, and the same texts as without graphs.

Without a GPU a `Tape` replaces torch's CUDA graphs: it records operations and replays them with the
same tensors into the same memory, as a CUDA graph does; operations that synchronize with the CPU
are rejected. Only `test_cuda_graphs_on_a_gpu` verifies that CUDA can capture the operations and
that `unsupported_reason` detects a GPU.
"""

import contextlib
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from miniformer import Seq2SeqTransformer
from miniformer.config import UserError
from miniformer.runtime import cuda_graphs
from tests.kit import tiny_model
from tests.unit.runtime.test_native import SHAPES

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
RECORDED = [name for name in SHAPES if name not in ("alibi", "both")]
STEPS = 23  # of 24 new tokens: the first follows from the prompt
WAITS = (
    "_local_scalar_dense",
    "lift_fresh",
    "nonzero",
)  # read by Python, or created from its values


class Tape:
    """Stub of `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.operations, self.played = [], 0

    def replay(self):
        self.played += 1
        for op, args, options, outputs in self.operations:
            for new, old in zip(tree_leaves(op(*args, **options)), outputs, strict=True):
                if isinstance(new, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


class OnTape(TorchDispatchMode):
    """Records operations on a tape; rejects those that a CUDA graph does not support."""

    def __init__(self, tape):
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        assert name not in WAITS, name
        out = op(*args, **(kwargs or {}))
        self.tape.operations.append((op, args, kwargs or {}, tree_leaves(out)))
        return out


@pytest.fixture
def recordings(monkeypatch):
    """The captured graphs, without a GPU; each counts its replays."""
    tapes = []
    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {
        "CUDAGraph": type("Noted", (Tape,), {"__init__": lambda self: record(self)}),
        "graph": lambda tape, **options: OnTape(tape),
        "device": contextlib.nullcontext,
        "stream": contextlib.nullcontext,
        "current_device": lambda: 0,
        "current_stream": lambda: stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(cuda_graphs, "_capture_stream", lambda device: stream)

    def record(tape):
        Tape.__init__(tape)
        tapes.append(tape)

    monkeypatch.setattr(
        cuda_graphs,
        "unsupported_reason",
        lambda model: (
            cuda_graphs.dynamic_component(model) or cuda_graphs.unsupported_component(model)
        ),
    )
    return tapes


@pytest.mark.catches("recorded_step_counts_its_own_column")
@pytest.mark.parametrize("shape", RECORDED)
def test_cuda_graphs_give_the_same_texts(shape, recordings):
    model = tiny_model(**SHAPES[shape])
    for options in ({"temperature": 0}, {"seed": 1}, {"num_beams": 3}):
        result = model.generate(PROMPTS, 24, cuda_graph=True, **options)
        assert result == model.generate(PROMPTS, 24, **options)
    assert [tape.played for tape in recordings] == [STEPS] * 3


@pytest.mark.catches("recorded_logits_share_memory")
def test_cuda_graphs_logits_are_copied(recordings):
    """Compares with a full forward pass; a graph writes to the same memory at each replay."""
    model, ids = tiny_model(), torch.randint(0, 31, (2, 9))
    with torch.inference_mode():
        full, runtime = model(ids), cuda_graphs.CudaGraphRuntime(model)
        runtime.prefill(ids[:, :5], None, 20)
        result = torch.stack([runtime.step(token) for token in ids[:, 5:].T], 1)
    torch.testing.assert_close(result, full[:, 5:], rtol=1e-4, atol=1e-4)
    assert [tape.played for tape in recordings] == [4]


@pytest.mark.parametrize("shape", ["llama", "relative", "post", "heads"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"seed": 2, "num_return_sequences": 2}])
def test_cuda_graphs_in_beam_search_sampling_and_seq2seq(shape, options, recordings):
    """Beams are reordered, and finished rows are removed."""
    model = tiny_model(model=Seq2SeqTransformer, causal=False, **SHAPES[shape])
    end = model.generate([[4]], 6, temperature=0)[0][3]
    options = {**options, "eos_id": end}
    result = model.generate(PROMPTS, 30, cuda_graph=True, **options)
    assert recordings
    assert result == model.generate(PROMPTS, 30, **options)


def test_cuda_graphs_are_recaptured_after_truncation(recordings):
    model = tiny_model(max_seq_len=60)
    result = model.generate(PROMPTS, 120, temperature=0, context_shift=True, cuda_graph=True)
    assert len(recordings) > 1
    assert result == model.generate(PROMPTS, 120, temperature=0, context_shift=True)


@pytest.mark.parametrize(("new", "tapes"), [(8, 0), (16, 0), (17, 1)])
def test_cuda_graphs_are_not_captured_for_short_texts(new, tapes, recordings):
    tiny_model().generate(PROMPTS, new, temperature=0, cuda_graph=True)
    assert len(recordings) == tapes


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"position": "alibi"}, "its positions depend on values on the CPU"),
        ({"logit_softcap": 4.0}, "flex_attention creates a new mask for each step"),
    ],
)
def test_cuda_graphs_report_unsupported_models(options, reason, recordings):
    with pytest.raises(UserError, match=f"this model does not support cuda_graph=true: {reason}"):
        tiny_model(**options).generate(PROMPTS, 24, cuda_graph=True)


def test_cuda_graphs_report_cpu_and_mask_backends():
    model = tiny_model()
    with pytest.raises(UserError, match="its weights are on cpu; leave it out"):
        model.generate(PROMPTS, 24, cuda_graph=True)
    model.layers[1].attention.backend = "flex"
    assert "attention backend flex" in cuda_graphs.dynamic_component(model)


def test_cuda_graphs_report_a_failed_capture(recordings, monkeypatch):
    def refuse(graph, **options):
        raise RuntimeError("CUDA error: operation not permitted\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.raises(
        UserError, match="graph capture failed: CUDA error: operation not permitted; le"
    ):
        tiny_model().generate(PROMPTS, 24, temperature=0, cuda_graph=True)


@pytest.mark.catches("cuda_graphs_ignore_weight_dtype")
def test_cuda_graphs_refuse_weight_dtype(recordings):
    with pytest.raises(UserError, match="weight_dtype=int8 needs the decoding kernels, which are"):
        tiny_model().generate(PROMPTS, 24, weight_dtype="int8", cuda_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("shape", RECORDED)
def test_cuda_graphs_on_a_gpu(shape, monkeypatch):
    """Graphs are captured and replayed on the GPU."""
    graphs_made = []

    class Noted(torch.cuda.CUDAGraph):
        played = 0

        def replay(self):
            super().replay()
            self.played += 1
            if self not in graphs_made:
                graphs_made.append(self)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Noted)
    model = tiny_model(**SHAPES[shape]).cuda()
    for options in ({"temperature": 0}, {"num_beams": 3}):
        result = model.generate(PROMPTS, 24, cuda_graph=True, **options)
        assert sum(graph.played for graph in graphs_made) == STEPS
        graphs_made.clear()
        assert result == model.generate(PROMPTS, 24, **options)
        assert graphs_made == []
