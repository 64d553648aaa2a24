"""Attention backends: their selection, and each against loops."""

import math

import pytest
import torch

from miniformer.config import UserError
from miniformer.model import attention_backends
from miniformer.model.attention_backends import AttentionRequirements
from miniformer.model.attention_backends.functions import ScoreOptions
from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.masks import make_visibility
from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.kit import tiny_model

B, H, K, T, E = 2, 4, 2, 6, 8
CPU = torch.device("cpu")
SEGMENTS = [[0, 1, 1, 1, 2, 2], [1, 2, 1, 2, 2, 0]]  # padding, packing, interleaving
CALL = AttentionRequirements(
    device="cpu", dtype=torch.float32, needs_grad=True, ragged=False, cached=False, cross=False,
    num_keys=64, head_dim=32, softcap=False, sinks=False, bias=False,
)  # fmt: skip
HALF = {"device": "cuda", "dtype": torch.bfloat16}


@pytest.mark.catches("gpu_is_asked_for_wide_heads")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "sdpa"),
        ({"ragged": True}, "sdpa"),
        ({"softcap": True}, "plain"),
        ({"dtype": torch.bfloat16}, "matmul"),
        ({"dtype": torch.bfloat16, "num_keys": 513}, "sdpa"),
        ({"dtype": torch.bfloat16, "needs_grad": False}, "sdpa"),
        ({"dtype": torch.bfloat16, "sinks": True}, "sdpa"),
        ({"dtype": torch.bfloat16, "softcap": True}, "plain"),
        (HALF, "sdpa"),
        ({**HALF, "ragged": True}, "varlen"),
        ({**HALF, "ragged": True, "bias": True}, "sdpa"),
        ({**HALF, "ragged": True, "cached": True}, "sdpa"),
        ({**HALF, "ragged": True, "dtype": torch.float32}, "sdpa"),
        ({**HALF, "softcap": True}, "flex"),
        ({**HALF, "softcap": True, "cross": True}, "plain"),
        ({**HALF, "softcap": True, "head_dim": 8}, "plain"),
        ({**HALF, "ragged": True, "head_dim": 257}, "sdpa"),
        ({"device": "mps", "softcap": True}, "plain"),
    ],
    ids=str,
)
def test_select_backend(changes, expected):
    assert attention_backends.select_backend("auto", CALL._replace(**changes))[0] == expected


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("sdpa", {"softcap": True}, "torch's fused attention has no soft-cap"),
        ("flex", {}, "flex_attention has no backward pass on a CPU"),
        ("flex", {"needs_grad": False, "cross": True}, "only self-attention is supported"),
        ("flex", {"device": "mps"}, "flex_attention does not run on mps"),
        ("flex", {**HALF, "head_dim": 15}, "needs head_dim >= 16 on a GPU, not 15"),
        ("varlen", {**HALF, "head_dim": 264}, "needs head_dim <= 256, not 264"),
        ("varlen", {}, "FlashAttention needs a CUDA device"),
        ("varlen", {"device": "cuda"}, "needs float16 or bfloat16, not torch.float32"),
        ("varlen", {**HALF, "cached": True}, "only self-attention without a cache"),
        ("varlen", {**HALF, "sinks": True}, "sinks of the scores is not supported"),
        ("matmul", {"bias": True}, "bias of the scores is not supported"),
    ],
)
def test_select_backend_rejects_unsupported_backend(backend, changes, message):
    with pytest.raises(UserError, match=f"attention backend '{backend}': .*{message}.*use 'auto'"):
        attention_backends.select_backend(backend, CALL._replace(**changes))


def test_select_backend_rejects_backend_missing_in_torch(monkeypatch):
    monkeypatch.setitem(
        attention_backends._REQUIRED_ATTRIBUTES,
        "varlen",
        ("torch.nn.attention.nosuch", "varlen_attn"),
    )
    with pytest.raises(UserError, match=r"torch [\d.]+.* has no torch.nn.attention.nosuch"):
        attention_backends.select_backend("varlen", CALL._replace(**HALF))
    assert (
        attention_backends.select_backend("auto", CALL._replace(**HALF, ragged=True))[0] == "sdpa"
    )


def by_loops(q, k, v, allowed, scores):
    """One pair at a time; allowed: [B][T][S]."""
    scale = q.shape[-1] ** -0.5 if scores.scale is None else scores.scale
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for t in range(q.shape[2]):
                weights = {}
                for s in range(k.shape[2]):
                    if allowed[b][t][s]:
                        score = scale * torch.dot(q[b, h, t], k[b, h * K // H, s])
                        if scores.bias is not None:
                            score = score + scores.bias[0, h, t, s]
                        if scores.softcap is not None:
                            score = scores.softcap * torch.tanh(score / scores.softcap)
                        weights[s] = torch.exp(score)
                if not weights:
                    continue
                total = sum(weights.values())
                if scores.sinks is not None:
                    total = total + torch.exp(scores.sinks[h])
                out[b, h, t] = sum(w / total * v[b, h * K // H, s] for s, w in weights.items())
    return out


def seen_by(causal, window=None, segments=SEGMENTS):
    ids = torch.tensor(segments)
    seen = make_visibility(B, T, causal=causal, window=window, segment_ids=ids, device=CPU)
    positions = seen.query_positions.tolist()

    def near(b, t, s):
        apart = positions[b][t] - positions[b][s]
        return window is None or (apart < window if causal else abs(apart) <= window // 2)

    allowed = [
        [
            [
                own == key_segment != 0 and (not causal or s <= t) and near(b, t, s)
                for s, key_segment in enumerate(row)
            ]
            for t, own in enumerate(row)
        ]
        for b, row in enumerate(segments)
    ]
    return seen, allowed


def drawn(grad=False, width=E):
    q = torch.randn(B, H, T, width, dtype=torch.float64)
    k, v = torch.randn(2, B, K, T, width, dtype=torch.float64)
    return [x.requires_grad_(grad) for x in (q, k.clone(), v.clone())]


SCORES = {
    "nothing": ScoreOptions(),
    "scale": ScoreOptions(scale=0.7),
    "bias": ScoreOptions(bias=torch.randn(1, H, T, T, dtype=torch.float64)),
    "sinks": ScoreOptions(sinks=torch.randn(H, dtype=torch.float64)),
    "softcap": ScoreOptions(softcap=0.5),
    "all": ScoreOptions(
        0.7, 0.5, torch.randn(H, dtype=torch.float64), torch.randn(1, H, T, T).double()
    ),
}


# Unsupported cases are in `test_select_backend_rejects_unsupported_backend`.
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *((backend, name) for backend in ("plain", "flex") for name in SCORES),
        *(("sdpa", name) for name, scores in SCORES.items() if scores.softcap is None),
        ("matmul", "nothing"), ("matmul", "scale"),
    ],
)  # fmt: skip
def test_backend_matches_loops(backend, name, causal):
    scores = SCORES[name]
    seen, allowed = seen_by(causal)
    q, k, v = drawn()
    with torch.no_grad():
        mask = attention_backends.prepare(backend, seen, scores, batch_size=B, dtype=q.dtype)
        out = attention_backends.BACKENDS[backend](q, k, v, mask, scores)
        torch.testing.assert_close(out, by_loops(q, k, v, allowed, scores))
    assert torch.equal(out[0, :, 0], torch.zeros(H, E).double()), "padding gets zeros"


@pytest.mark.catches(
    "row_that_sees_nothing_gives_a_mean",
    "attention_keeps_no_gradient_of_its_softmax",
)
@pytest.mark.parametrize("backend", ["plain", "sdpa", "matmul"])
def test_backend_gradients_match_loops_without_nan(backend):
    seen, allowed = seen_by(True)
    grad = torch.randn(B, H, T, E, dtype=torch.float64)
    inputs = drawn(grad=True)
    mask = attention_backends.prepare(
        backend, seen, ScoreOptions(), batch_size=B, dtype=torch.float64
    )
    got = torch.autograd.grad(
        attention_backends.BACKENDS[backend](*inputs, mask, ScoreOptions()), inputs, grad
    )
    expected = torch.autograd.grad(by_loops(*inputs, allowed, ScoreOptions()), inputs, grad)
    for first, second in zip(got, expected, strict=True):
        torch.testing.assert_close(first, second)


def test_matmul_rejects_second_derivative():
    q, k, v = drawn(grad=True)
    mask = attention_backends.prepare(
        "matmul", seen_by(True)[0], ScoreOptions(), batch_size=B, dtype=torch.float64
    )
    out = attention_backends.BACKENDS["matmul"](q, k, v, mask, ScoreOptions())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def fake_varlen(
    q, k, v, starts, key_starts, longest, key_longest, *, scale, window_size, enable_gqa=False
):
    """The documented behavior of torch's kernel, in loops over the segments."""
    assert torch.equal(starts, key_starts)
    assert starts.dtype == torch.int32
    lengths = (starts[1:] - starts[:-1]).tolist()
    assert longest == key_longest == max(lengths)
    assert q.shape[-1] % 8 == 0  # as the kernel wants it
    left, right = window_size
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    assert enable_gqa == (group > 1)
    parts = []
    for start, length in zip(starts.tolist(), lengths, strict=False):
        part = slice(start, start + length)
        keys, values = (x[part].repeat_interleave(group, 1) for x in (k, v))
        s = torch.einsum("the,she->hts", q[part], keys) * scale
        apart = torch.arange(length)[:, None] - torch.arange(length)
        hidden = torch.zeros(length, length, dtype=torch.bool)
        if left >= 0:
            hidden |= apart > left
        if right >= 0:
            hidden |= apart < -right
        probabilities = s.masked_fill(hidden, -math.inf).softmax(-1)
        parts.append(torch.einsum("hts,she->the", probabilities, values))
    return torch.cat(parts)


@pytest.fixture
def torchs_varlen():
    """torch's own `varlen_attn` with its checks, with a Python kernel for CPUs."""
    from torch.nn.attention import varlen

    def kernel(
        q, k, v, starts, key_starts, longest, key_longest, causal, scale, window, gqa, *more
    ):
        assert causal == (window == [-1, 0])
        assert more == (None,) * len(more)
        out = fake_varlen(
            q, k, v, starts, key_starts, longest, key_longest, scale=scale,
            window_size=tuple(window), enable_gqa=gqa,
        )  # fmt: skip
        return out, q.new_zeros(q.shape[1], len(q)), q.new_zeros(2)

    library = torch.library.Library("torch_attn", "IMPL")
    library.impl("_varlen_attn", kernel, "CPU")
    yield varlen.varlen_attn
    library._destroy()


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_varlen_arguments_of_torch_function(torchs_varlen, causal, window):
    """Forward, in the installed torch; its kernel itself runs in `test_backend_on_gpu` only."""
    seen, allowed = seen_by(causal, window)
    inputs = drawn()
    with torch.no_grad():
        mask = attention_backends.prepare(
            "varlen", seen, ScoreOptions(0.7), batch_size=B, dtype=torch.float64
        )
        out = attention_backends.BACKENDS["varlen"](*inputs, mask, ScoreOptions(0.7))
    torch.testing.assert_close(out, by_loops(*inputs, allowed, ScoreOptions(0.7)))


def older_varlen(q, k, v, starts, key_starts, longest, key_longest, *, scale, window_size):
    """The same in torch 2.11, without `enable_gqa`."""
    return fake_varlen(
        q, k, v, starts, key_starts, longest, key_longest, scale=scale, window_size=window_size
    )


@pytest.mark.catches("varlen_joins_rows")
@pytest.mark.parametrize("kernel", [fake_varlen, older_varlen])
@pytest.mark.parametrize("window", [None, 1, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_varlen_layout_with_python_kernel(monkeypatch, causal, window, kernel):
    """Gradients too. Only `test_backend_on_gpu` runs torch's kernel with this layout."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    seen, allowed = seen_by(causal, window)
    grad = torch.randn(B, H, T, E, dtype=torch.float64)
    inputs = drawn(grad=True)
    out = attention_backends.BACKENDS["varlen"](
        *inputs,
        attention_backends.prepare(
            "varlen", seen, ScoreOptions(0.7), batch_size=B, dtype=torch.float64
        ),
        ScoreOptions(0.7),
    )
    expected = by_loops(*inputs, allowed, ScoreOptions(0.7))
    torch.testing.assert_close(out, expected)
    for first, second in zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("scale", [None, 0.7])
def test_varlen_pads_head_dim(monkeypatch, scale):
    """FlashAttention supports multiples of 8 only."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake_varlen)
    seen, allowed = seen_by(True)
    inputs, scores = drawn(grad=True, width=6), ScoreOptions(scale)
    mask = attention_backends.prepare("varlen", seen, scores, batch_size=B, dtype=torch.float64)
    out, expected = (
        attention_backends.BACKENDS["varlen"](*inputs, mask, scores),
        by_loops(*inputs, allowed, scores),
    )
    torch.testing.assert_close(out, expected)
    for first, second in zip(
        torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(expected.sum(), inputs),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(first, second)


def test_varlen_separates_rows_for_any_segment_ids(monkeypatch):
    """Negative ids are not rejected on a GPU."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake_varlen)
    seen, allowed = seen_by(True, segments=[[-3, -3, 1, 1, 0, 1], [-1, -3, -1, 1, 1, 0]])
    inputs = drawn()
    mask = attention_backends.prepare(
        "varlen", seen, ScoreOptions(), batch_size=B, dtype=torch.float64
    )
    out = attention_backends.BACKENDS["varlen"](*inputs, mask, ScoreOptions())
    torch.testing.assert_close(out, by_loops(*inputs, allowed, ScoreOptions()))


@pytest.mark.parametrize("window", [None, 2])
def test_varlen_without_padding_or_segments(monkeypatch, window):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake_varlen)
    seen = make_visibility(B, T, causal=True, window=window, device=CPU)
    inputs = drawn()
    out = attention_backends.BACKENDS["varlen"](
        *inputs,
        attention_backends.prepare(
            "varlen", seen, ScoreOptions(), batch_size=B, dtype=torch.float64
        ),
        ScoreOptions(),
    )
    reach = window or T
    allowed = [[[t - reach < s <= t for s in range(T)] for t in range(T)]] * B
    torch.testing.assert_close(out, by_loops(*inputs, allowed, ScoreOptions()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("backend", ["sdpa", "flex", "varlen"])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("width", [8, 6, 64])
def test_backend_on_gpu(backend, causal, window, width):
    call = CALL._replace(**HALF, ragged=True, head_dim=width)
    if attention_backends.unsupported_reason(backend, call):
        pytest.skip(attention_backends.unsupported_reason(backend, call))
    seen, allowed = seen_by(causal, window)
    inputs = [x.detach().bfloat16().double().requires_grad_() for x in drawn(width=width)]
    there = [x.detach().bfloat16().cuda().requires_grad_() for x in inputs]
    seen = type(seen)(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in seen))
    mask = attention_backends.prepare(
        backend, seen, ScoreOptions(), batch_size=B, dtype=torch.bfloat16
    )
    out = attention_backends.BACKENDS[backend](*there, mask, ScoreOptions())
    expected, grad = (
        by_loops(*inputs, allowed, ScoreOptions()),
        torch.randn(B, H, T, width).bfloat16(),
    )
    actual = [out, *torch.autograd.grad(out, there, grad.cuda())]
    for first, second in zip(
        actual, [expected, *torch.autograd.grad(expected, inputs, grad.double())], strict=True
    ):
        torch.testing.assert_close(first.cpu().double(), second, rtol=0.03, atol=0.03)


def test_backend_report():
    model = tiny_model(logit_softcap=2.0)
    set_attention_backend(model, "plain", layers=[1])
    assert model.backend_report() == [
        "layers.0.attention: plain (torch's fused attention has no soft-cap)",
        "layers.1.attention: plain (requested)",
    ]
    lines = tiny_model(model=Seq2SeqTransformer, causal=False, n_layers=1).backend_report()
    assert [line.partition(":")[0] for line in lines] == [
        "encoder.layers.0.attention",
        "decoder.layers.0.attention",
        "decoder.layers.0.cross_attention",
    ]


def test_backend_report_uses_length_and_windows():
    model = tiny_model(sliding_window=4, window_pattern="LG", max_seq_len=1024).bfloat16()
    assert model.backend_report()[1].startswith("layers.1.attention: sdpa (torch's fused")
    for line in model.backend_report(keys=64):
        assert "attention: matmul (faster backward" in line
    calls = []
    original = attention_backends.select_backend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            attention_backends, "select_backend", lambda *a: calls.append(a[1]) or original(*a)
        )
        model.backend_report(keys=9)
        model(torch.zeros(1, 9).long())
        model.backend_report(keys=4)
        model.backend_report(keys=4, ragged=True)
    assert calls[:2] == calls[2:4], "a report is what a pass does"
    assert [call.ragged for call in calls] == [True, False] * 2 + [False] * 2 + [True] * 2
    lines = tiny_model(model=Seq2SeqTransformer, causal=False).bfloat16().backend_report(keys=7)
    assert all("matmul" in line for line in lines)


@pytest.mark.parametrize("cached", [False, True])
def test_backend_report_of_cached_decoder(cached):
    model, calls = tiny_model(model=Seq2SeqTransformer, causal=False, n_layers=1), []
    original = attention_backends.select_backend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            attention_backends, "select_backend", lambda *a: calls.append(a[1]) or original(*a)
        )
        model.backend_report(cached=cached)
    of_encoder, of_decoder, across = (call.cached for call in calls)
    assert (of_encoder, of_decoder, across) == (False, cached, cached)


@pytest.mark.catches("frozen_inputs_mean_no_gradients")
@pytest.mark.parametrize("trained", ["all", "layers", "none"])
def test_needs_grad_if_any_weight_requires_grad(trained):
    """Neither a frozen embedding nor train mode decides it."""
    model = tiny_model().bfloat16()
    ids = torch.zeros(1, 3).long()
    model.requires_grad_(trained == "all")
    model.layers[1].requires_grad_(trained != "none")
    set_attention_backend(model, "flex")
    with torch.no_grad():
        model(ids)
    if trained == "none":
        model.train()(ids)
    else:
        with pytest.raises(UserError, match="flex_attention has no backward pass on a CPU"):
            model(ids)
    set_attention_backend(model, "auto")
    chosen = "sdpa" if trained == "none" else "matmul"
    assert f"attention: {chosen} " in model.backend_report()[0]


def test_needs_grad_of_the_source():
    model = tiny_model(model=Seq2SeqTransformer, causal=False).requires_grad_(False)
    ids = torch.zeros(1, 3).long()
    memory = model.encode(ids)
    memory.features.requires_grad_()
    calls = []
    original = attention_backends.select_backend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            attention_backends, "select_backend", lambda *a: calls.append(a[1]) or original(*a)
        )
        model.features(ids, memory)
    assert {call.cross: call.needs_grad for call in calls} == {False: False, True: True}


def test_unsupported_backend_fails_when_the_model_is_called():
    model = tiny_model()
    set_attention_backend(model, "varlen")
    with pytest.raises(UserError, match="FlashAttention needs a CUDA device"):
        model(torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize("change", ["softcap", "sinks", "window"])
def test_attention_contexts_are_separate_for_different_layers(change):
    """One layer is changed after construction; it does not share the context of the others."""
    model = tiny_model(position="alibi")
    attention = model.layers[1].attention
    if change == "sinks":
        attention.sinks = torch.nn.Parameter(torch.randn(4))
    else:
        setattr(attention, change, 2)
    ids = torch.randint(0, 31, (2, 9))
    out = model(ids)
    cache = model.new_cache(2, 9)
    steps = torch.cat([model(part, cache=cache) for part in ids.split(3, 1)], 1)
    torch.testing.assert_close(steps, out, rtol=1e-4, atol=1e-4)
    set_attention_backend(model, "plain")
    torch.testing.assert_close(model(ids), out, rtol=1e-4, atol=1e-4)
    unchanged = tiny_model(position="alibi")
    assert not torch.allclose(unchanged(ids), out)


EMPTY = [(2, 0), (0, 3), (0, 0)]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "plain", "sdpa", "matmul", "flex"])
@pytest.mark.parametrize("causal", [True, False])
def test_backend_with_empty_inputs(backend, dtype, shape, causal):
    model = tiny_model(causal=causal).to(dtype)
    set_attention_backend(model, backend)
    ids = torch.zeros(shape, dtype=torch.long)
    with torch.set_grad_enabled(backend != "flex"):
        for options in ({}, {"attention_mask": ids == 0}, {"segment_ids": ids + 1}):
            out = model(ids, **options)
            assert out.shape == (*shape, 31)
            assert out.dtype == dtype
            if backend != "flex":
                out.sum().backward()
    for parameter in model.parameters():
        assert backend == "flex" or not parameter.grad.any()


@pytest.mark.parametrize(("sources", "targets"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("backend", ["auto", "plain", "matmul"])
def test_seq2seq_with_empty_source_or_target(backend, sources, targets):
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    set_attention_backend(model, backend)
    ids = torch.zeros(2, 3).long()
    for mask in (None, torch.ones(2, sources).bool()):
        out = model(ids[:, :sources], ids[:, :targets], mask)
        assert out.shape == (2, targets, 31)
        assert out.isfinite().all()


def test_varlen_of_padding_only(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", None)  # it is not asked
    seen, _ = seen_by(True, segments=[[0] * T] * B)
    mask = attention_backends.prepare(
        "varlen", seen, ScoreOptions(), batch_size=B, dtype=torch.float64
    )
    assert not attention_backends.BACKENDS["varlen"](*drawn(), mask, ScoreOptions()).any()


@pytest.mark.parametrize("backend", ["plain", "sdpa", "matmul"])
@pytest.mark.parametrize("segments", [None, [[1] * 6, [1] * 5 + [0]]], ids=["all", "padded"])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_scales_scores_before_they_overflow(backend, segments, causal):
    """q.k is 80000, above what float16 holds; scaled, 20000."""
    ids = None if segments is None else torch.tensor(segments)
    seen = make_visibility(B, T, causal=causal, segment_ids=ids, device=CPU)
    q, v = torch.full((B, H, T, 16), 70.7), torch.randn(B, H, T, 16)
    out = []
    for dtype in (torch.float16, torch.float32):
        mask = attention_backends.prepare(backend, seen, ScoreOptions(), batch_size=B, dtype=dtype)
        out.append(
            attention_backends.BACKENDS[backend](
                *(x.to(dtype) for x in (q, q, v)), mask, ScoreOptions()
            )
        )
    torch.testing.assert_close(out[0].float(), out[1], rtol=1e-2, atol=1e-2)
