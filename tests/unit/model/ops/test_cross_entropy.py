"""Fused linear cross-entropy against torch's cross-entropy of all logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from miniformer.model.ops import cross_entropy
from miniformer.model.ops.cross_entropy import linear_cross_entropy

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def by_torch(features, weight, labels, *, bias=None, softcap=None, label_smoothing=0.0):
    """The same from all logits, cast to float32 after the matrix product."""
    logits = F.linear(features, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)


def example(n=7, v=11, d=5, *, dtype=torch.float64, seed=0, ignored=(2, 3)):
    """features [n, d], weight [v, d], labels [n], bias [v]; floats require gradients."""
    rng = torch.Generator().manual_seed(seed)
    features, weight, bias = (
        (2 * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in ((n, d), (v, d), (v,))
    )
    labels = torch.randint(0, v, (n,), generator=rng)
    labels[list(ignored)] = -100
    return features, weight, labels, bias


def results(loss, sources, incoming=1.0):
    """The loss, and its gradients by the sources that require one."""
    wanting = [source for source in sources if source.requires_grad]
    return [loss.detach(), *torch.autograd.grad(incoming * loss, wanting)]


def assert_alike(sources, labels, *, bias=None, incoming=1.0, tolerance=TIGHT, **options):
    """Loss, gradients and their types are those of torch."""
    chunk = options.pop("chunk", None)
    every = [*sources, *([] if bias is None else [bias])]
    fused = linear_cross_entropy(*sources, labels, bias=bias, chunk_size=chunk, **options)
    by_definition = by_torch(*sources, labels, bias=bias, **options)
    actual, expected = results(fused, every, incoming), results(by_definition, every, incoming)
    for first, second in zip(actual, expected, strict=True):
        torch.testing.assert_close(first, second, **tolerance)


@pytest.mark.catches("smoothing_does_not_reach_the_gradient", "ignored_labels_are_predicted")
@settings(max_examples=150)
@given(
    n=st.integers(0, 12),
    v=st.integers(1, 14),
    d=st.integers(1, 6),
    chunk=st.none() | st.integers(1, 15),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    softcap=st.none() | st.floats(0.5, 40.0),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    biased=st.booleans(),
    incoming=st.sampled_from([1.0, 0.0, -0.25, 3.0]),
    seed=st.integers(0, 99),
)
def test_cross_entropy_and_gradients_match_torch(
    n, v, d, chunk, share, softcap, smoothing, biased, incoming, seed
):
    ignored = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share
    features, weight, labels, bias = example(
        n, v, d, seed=seed, ignored=ignored.nonzero()[:, 0].tolist()
    )
    assert_alike(
        (features, weight), labels, bias=bias if biased else None,
        softcap=softcap, label_smoothing=smoothing, chunk=chunk, incoming=incoming,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, {"rtol": 1e-4, "atol": 1e-4}),
        # bfloat16 has 8 bits; a chunk's product by the weight is rounded once, as torch's is.
        (torch.bfloat16, {"rtol": 3e-2, "atol": 6e-2}),
    ],
)
@pytest.mark.parametrize("chunk", [None, 10])
def test_cross_entropy_in_narrow_types(dtype, tolerance, chunk):
    features, weight, labels, bias = example(40, 50, 16, dtype=dtype)
    assert_alike((features, weight), labels, bias=bias, chunk=chunk, tolerance=tolerance)
    loss = linear_cross_entropy(features, weight, labels, chunk_size=chunk)
    assert loss.dtype == torch.float32
    assert loss.shape == ()


@pytest.mark.parametrize("features_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 10])
def test_cross_entropy_under_autocast(features_dtype, chunk):
    features, weight, labels, bias = example(40, 50, 16, dtype=torch.float32)
    features = features.detach().to(features_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(
            (features, weight), labels, bias=bias, chunk=chunk, softcap=5.0,
            tolerance={"rtol": 3e-2, "atol": 6e-2},
        )  # fmt: skip
        narrow = linear_cross_entropy(features, weight, labels, chunk_size=chunk)
    wide = linear_cross_entropy(features.float(), weight, labels, chunk_size=chunk)
    assert narrow.dtype == torch.float32
    assert narrow != wide  # it is rounded to bfloat16 on the way


@pytest.mark.catches("autocast_reaches_float64")
def test_cross_entropy_of_float64_under_autocast():
    features, weight, labels, _ = example()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_cross_entropy(features, weight, labels).dtype == torch.float64


def test_cross_entropy_on_meta_device():
    features, weight, labels, bias = (x.detach().to("meta") for x in example())
    loss = linear_cross_entropy(features, weight.requires_grad_(), labels, bias=bias, chunk_size=3)
    loss.backward()
    assert weight.grad.shape == (11, 5)


def test_cross_entropy_accumulates_chunks_in_float32():
    """Each row adds the same to one row of the weight: a sum in bfloat16 would stop growing."""
    features = torch.ones(2000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(2000, dtype=torch.long)
    linear_cross_entropy(features, weight, labels, chunk_size=1).backward()
    assert weight.grad.tolist() == [[-1000.0], [1000.0]]


@pytest.mark.parametrize("wanting", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
def test_cross_entropy_gradients_of_required_inputs_only(wanting):
    features, weight, labels, bias = example()
    for source, wants in zip((features, weight, bias), wanting, strict=True):
        source.requires_grad_(bool(wants))
    assert_alike((features, weight), labels, bias=bias, chunk=3)


def test_cross_entropy_without_gradients():
    features, weight, labels, _ = example()
    with torch.no_grad():
        loss = linear_cross_entropy(features, weight, labels, chunk_size=3)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, by_torch(features, weight, labels), **TIGHT)
    assert not linear_cross_entropy(features.detach(), weight.detach(), labels).requires_grad


def test_cross_entropy_of_feature_views():
    wide = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    weight, labels = torch.randn(9, 4, dtype=torch.float64), torch.arange(6)
    for view in (wide.transpose(0, 1)[:, 1], wide[1, :1].expand(6, 4)):
        assert_alike((view, weight), labels, chunk=4)


def test_cross_entropy_gradient_of_confident_predictions():
    """If p is nearly 1, bfloat16 represents p - 1 but not p."""
    features = torch.tensor([[1.0]])
    weight = torch.tensor([[0.0], [-8.0]], requires_grad=True)  # p = 0.99966
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(features, weight, torch.tensor([0])).backward()
    torch.testing.assert_close(
        weight.grad, 3.3535e-4 * torch.tensor([[-1.0], [1.0]]), rtol=0.01, atol=0
    )


def test_cross_entropy_of_extreme_logits_is_finite():
    features = torch.tensor([[1e4], [-1e4], [3.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -torch.inf])  # an id that is never predicted
    labels = torch.tensor([1, 1, -100])
    loss = linear_cross_entropy(features, weight, labels, bias=bias)
    assert loss == 2e4
    assert all(x.isfinite().all() for x in torch.autograd.grad(loss, [features, weight]))


def test_cross_entropy_ignores_infinite_loss_of_ignored_position():
    bias = torch.tensor([-torch.inf, 0.0])
    loss = linear_cross_entropy(
        torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([1, -100]), bias=bias
    )
    assert loss == 0


class _Watch(TorchDispatchMode):
    """Records names of operations, and the elements of their largest output."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        outputs = out if isinstance(out, (tuple, list)) else [out]
        sizes = [x.numel() for x in outputs if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_cross_entropy_never_stores_all_logits(dtype, softcap):
    features, weight, labels, bias = example(64, 100, 8, dtype=dtype)  # N * V = 6400
    with _Watch() as watch:
        loss = linear_cross_entropy(
            features, weight, labels, bias=bias, softcap=softcap, chunk_size=8
        )
        loss.backward()
    assert watch.largest == 800  # a chunk's logits, and the weight
    with _Watch() as watch, torch.no_grad():
        linear_cross_entropy(features, weight, labels, bias=bias, softcap=softcap, chunk_size=8)
    assert watch.largest == 800
    with _Watch() as watch:
        by_torch(features, weight, labels)
    assert watch.largest == 6400  # the tracker sees large tensors


def test_cross_entropy_chunks_have_equal_size():
    """9 positions in chunks of at most 8: 5 and 4, not 8 and 1."""
    features, weight, labels, _ = example(9, 100, 2)
    with _Watch() as watch:
        linear_cross_entropy(features, weight, labels, chunk_size=8)
    assert watch.largest == 500


def test_cross_entropy_default_chunk_size():
    with _Watch() as watch:
        linear_cross_entropy(
            torch.zeros(70, 1), torch.zeros(200_000, 1), torch.zeros(70, dtype=torch.long)
        )
    assert watch.largest == 35 * 200_000  # not below 64 rows, so two chunks of 35
    with _Watch() as watch:
        linear_cross_entropy(
            torch.zeros(2000, 1), torch.zeros(5000, 1), torch.zeros(2000, dtype=torch.long)
        )
    assert watch.largest == 1000 * 5000  # at most 2**23 / 5000 = 1677 rows


def test_cross_entropy_backward_only_scales():
    loss = linear_cross_entropy(*example()[:3], chunk_size=3)
    with _Watch() as watch:
        loss.backward()
    assert not watch.names & {"mm", "addmm", "_log_softmax", "exp"}


def test_cross_entropy_with_retained_graph():
    features, weight, labels, _ = example()
    loss = linear_cross_entropy(features, weight, labels, chunk_size=3)
    once = torch.autograd.grad(loss, [features, weight], retain_graph=True)
    again = torch.autograd.grad(loss, [features, weight], retain_graph=True)
    torch.testing.assert_close(once, again, rtol=0, atol=0)


def test_cross_entropy_rejects_second_derivative():
    features, weight, labels, _ = example()
    loss = linear_cross_entropy(features, weight, labels)
    with pytest.raises(RuntimeError, match="no second derivative: create_graph must be false"):
        torch.autograd.grad(loss, features, create_graph=True)


def test_cross_entropy_gradients_match_finite_differences():
    features, weight, labels, bias = example(4, 5, 3, ignored=(1,))
    assert torch.autograd.gradcheck(
        lambda f, w, b: linear_cross_entropy(f, w, labels, bias=b, softcap=3.0, chunk_size=3),
        (features, weight, bias),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("expected", [[True] * 3, [False, True, False], [False] * 3])
def test_cross_entropy_custom_op_schema(dtype, expected):
    features, weight, labels, bias = (x.detach() for x in example(dtype=torch.float32))
    torch.library.opcheck(
        cross_entropy._custom_op,
        (features, weight, bias, labels, 5.0, 0.1, 3, dtype, expected),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("labels", "chunk", "error", "message"),
    [
        (torch.zeros(6).long(), 3, ValueError, r"labels must be \[7\], .* not \[6\]"),
        (torch.zeros(7, 1).long(), 3, ValueError, r"labels must be \[7\], .* not \[7, 1\]"),
        (torch.zeros(7).long(), 0, ValueError, "chunk_size must be at least 1, not 0"),
        (torch.full((7,), 11), 3, RuntimeError, "index 11 is out of bounds"),
        (torch.full((7,), -1), 3, RuntimeError, "index -1 is out of bounds"),
    ],
)
def test_cross_entropy_rejects_wrong_labels_and_chunk_size(labels, chunk, error, message):
    features, weight, _, _ = example()
    with pytest.raises(error, match=message):
        linear_cross_entropy(features, weight, labels, chunk_size=chunk)
