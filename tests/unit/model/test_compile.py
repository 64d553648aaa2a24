"""Each architecture compiles as one graph: in training, and in decoding at any length.

Whether a graph breaks or is traced again is decided before it is made into machine code, so most of
this goes without that last, slow part.
"""

import pytest
import torch

from miniformer.config import TransformerConfig
from miniformer.config.architectures import (
    ARCHITECTURES,
    SEQ2SEQ_ARCHITECTURES,
    architecture_config,
)
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

SIZES = {
    "vocab_size": 31, "d_model": 16, "n_heads": 4, "head_dim": 8, "n_layers": 2, "d_ff": 24,
    "max_seq_len": 32, "dropout": 0.0,
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("default")  # the compiler's own
# Those with all kinds of parts between them; the other families are slow.
QUICK = ("gpt2", "llama", "gemma3", "bert", "t5")


def families(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def build(name, **more):
    torch.manual_seed(0)
    values = architecture_config(name, **SIZES, **more)
    if values.get("sliding_window"):
        values["sliding_window"] = 6
    config = TransformerConfig.from_dict(values)
    return Seq2SeqTransformer(config) if name in SEQ2SEQ_ARCHITECTURES else Transformer(config)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=False):
        yield
    torch._dynamo.reset()


def traced(function):
    """`function` compiled as one graph, and a list with an entry for each trace."""
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return torch.compile(function, backend=note, fullgraph=True), graphs


def ids(rows, length):
    return torch.randint(0, 31, (rows, length))


@pytest.mark.parametrize("name", families(ARCHITECTURES))
def test_architecture_trains_as_one_graph_for_any_length(name):
    model = build(name).train()

    def loss(source, target, labels):
        if name in SEQ2SEQ_ARCHITECTURES:
            features = model.features(target, model.encode(source))
        else:
            features = model.features(target)
        return model.cross_entropy(features.flatten(0, 1), labels.flatten())

    step, graphs = traced(loss)
    for length in (7, 9, 12, 15):
        source, target, labels = ids(2, 5), ids(2, length), ids(2, length)
        expected = loss(source, target, labels)
        torch.testing.assert_close(step(source, target, labels), expected, rtol=1e-5, atol=1e-5)
        if length == 9:
            traces = len(graphs)  # lengths are general from the second one on
    assert len(graphs) == traces <= 2


@pytest.mark.parametrize(
    "name",
    families(
        n for n in ARCHITECTURES if ARCHITECTURES[n].get("causal") or n in SEQ2SEQ_ARCHITECTURES
    ),
)
@torch.inference_mode()
def test_architecture_decodes_as_one_graph_at_any_length(name):
    model = build(name).eval()
    prompt = ids(2, 5)
    memory = model.encode(ids(2, 4)) if name in SEQ2SEQ_ARCHITECTURES else None
    first, second = model.new_cache(2, 20), model.new_cache(2, 20)

    def step(token, cache):
        if memory is not None:
            return model.logits(model.features(token, memory, cache=cache))
        return model(token, cache=cache)

    step(prompt, first), step(prompt, second)
    compiled, graphs = traced(step)
    traces = []
    for token in ids(2, 12).split(1, 1):
        torch.testing.assert_close(
            compiled(token, first), step(token, second), rtol=1e-5, atol=1e-5
        )
        traces.append(len(graphs))
    # A ring may be traced once more, when it is full.
    assert traces[1] <= 2
    assert traces[-1] <= traces[1] + (model.config.sliding_window is not None)


@pytest.mark.parametrize("name", ["llama"])
def test_compiled_gradients_match_eager(name):
    """With the full compiler, down to machine code."""
    model = build(name, n_kv_heads=2).train()
    inputs, labels = ids(2, 9), ids(2, 9)

    def loss():
        return model.cross_entropy(model.features(inputs).flatten(0, 1), labels.flatten())

    loss().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.compile(loss, fullgraph=True)().backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5)
