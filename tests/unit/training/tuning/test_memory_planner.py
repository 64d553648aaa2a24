"""Memory planner: sizes, peaks of steps, the largest batch that fits."""

import gc
import json
import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from miniformer.config import UserError
from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.model.ops import products
from miniformer.model.ops.cross_entropy import linear_cross_entropy
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.tuning import memory_planner
from miniformer.training.tuning.memory_planner import (
    largest_fitting_micro_batch,
    peak_tensor_bytes,
    plan_memory,
)
from miniformer.training.tuning.memory_tracker import (
    current_memory,
    peak_memory,
    reset_peak_memory,
    step_memory_growth,
)
from miniformer.utils.units import format_bytes, parse_bytes
from tests.kit import run_python, tiny_model

CPU = torch.device("cpu")
LENGTH = 128
resettable = pytest.mark.skipif(not reset_peak_memory(CPU), reason="only Linux resets the peak")


@pytest.mark.catches("gigabytes_are_powers_of_1024")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("500MB", 5 * 10**8), ("2e9", 2 * 10**9),
        ("64 kib", 65536), ("1TB", 10**12), (".5gb", 5 * 10**8), ("123", 123), ("12B", 12),
        ("1e3MB", 10**9), ("", None), ("GB", None), ("-1GB", None), ("4 Gigabytes", None),
        ("4G", None), ("nan", None), ("inf", None), ("0", None), ("1.2.3MB", None), ("1,5GB", None),
    ],
)  # fmt: skip
def test_parse_bytes_reads_units(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("count", [5 * 10**6, 999 * 10**6, 10**9, 3_250_000_000, 48 * 10**9])
def test_format_bytes_round_trip(count):
    assert parse_bytes(format_bytes(count)) == count


# Peaks of steps


@pytest.mark.catches("freed_tensors_still_count", "peak_is_what_is_left_at_the_end")
def test_peak_tensor_bytes_of_chains():
    x = torch.zeros(10, 100)
    assert (
        peak_tensor_bytes(lambda: x.exp().exp().exp()) == 2 * 4000
    )  # the first is freed before the third
    assert peak_tensor_bytes(lambda: [x.exp() for _ in range(5)]) == 5 * 4000
    assert peak_tensor_bytes(lambda: [x.exp() for _ in range(5)] and None) == 5 * 4000
    assert peak_tensor_bytes(lambda: x.view(100, 10).add_(1)) == 0  # a view, changed in place


def test_peak_tensor_bytes_includes_the_backward_pass():
    """exp saves its output; its gradient is as large, and there are two scalars."""
    x = torch.zeros(10, 100, requires_grad=True)
    assert peak_tensor_bytes(lambda: x.exp().sum().backward()) == 2 * 4000 + 2 * 4


class Wasteful(torch.autograd.Function):
    """Allocates 40 kB temporarily in its backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        return grad + torch.ones(10_000).sum() * 0


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_peak_tensor_bytes_includes_custom_backward_passes(how):
    def step():
        model.zero_grad()
        Wasteful.apply(model(inputs)).sum().backward()

    model = tiny_model(n_layers=1).train()
    set_activation_checkpointing(model, how)
    inputs = torch.zeros(1, 1, dtype=torch.int64)
    assert 40_000 < peak_tensor_bytes(step) < 80_000


def test_peak_tensor_bytes_includes_logits_of_the_fused_loss():
    features = torch.randn(64, 16, requires_grad=True)
    weight = torch.randn(1000, 16, requires_grad=True)
    labels = torch.randint(0, 1000, (64,))
    peak = peak_tensor_bytes(lambda: linear_cross_entropy(features, weight, labels).backward())
    logits, by_weight, by_features = 64 * 1000 * 4, 1000 * 16 * 4, 64 * 16 * 4
    assert logits + by_weight + by_features <= peak < 1.05 * (logits + by_weight + by_features)


def allocated(step):
    """Peak of a step by the profiler of torch's allocator, including kernels."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_peak_tensor_bytes_match_the_allocator(how, monkeypatch):
    monkeypatch.setattr(products, "_is_faster", lambda: False)  # oneDNN copies within its operator

    def step():
        LanguageModeling().loss(model, batch)[0].backward()

    def afresh(measure):
        model.zero_grad()
        gc.collect()  # so that the step frees no earlier tensors
        return measure(step)

    model = tiny_model(d_model=64, n_layers=4, vocab_size=500, dropout=0.1).train()
    set_activation_checkpointing(model, how)
    batch = next(batches_for(8, length=32, vocabulary=500))
    step()
    assert afresh(peak_tensor_bytes) == pytest.approx(afresh(allocated), rel=0.01)


@resettable
def test_memory_growth_is_that_of_the_process():
    def step():
        torch.ones(200 * 2**20, dtype=torch.uint8)
        retained.append(torch.ones(40 * 2**20, dtype=torch.uint8))

    retained = []
    grown = step_memory_growth(step, CPU, num_steps=2)
    assert grown == pytest.approx((40 + 200) * 2**20, rel=0.05)
    assert current_memory(CPU) < peak_memory(CPU) - 150 * 2**20
    assert reset_peak_memory(CPU)
    assert peak_memory(CPU) == pytest.approx(current_memory(CPU), rel=0.02)


# What fits


def batches_for(size, *, length=LENGTH, vocabulary=31):
    generator = torch.Generator().manual_seed(size)
    while True:
        ids = torch.randint(0, vocabulary, (size, length + 1), generator=generator)
        yield {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "about": {}}


@pytest.mark.catches("micro_batches_make_up_less_than_the_batch")
@pytest.mark.parametrize("batch_size", range(1, 41))
def test_micro_batches_add_up_to_the_batch(batch_size):
    for most in range(1, batch_size + 1):
        size, _ = largest_fitting_micro_batch(lambda size: size, batch_size, most)
        many = math.ceil(batch_size / size)
        assert most / 2 < size <= most
        assert batch_size <= size * many < batch_size + many  # one fewer is not enough


def search(grown, room, batch_size=64):
    """The largest micro-batch and the sizes that were tried."""
    tried = []

    def measured(size):
        tried.append(size)
        return grown(size)

    return largest_fitting_micro_batch(measured, batch_size, room)[0], tried


POWERS = (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("grown", "share"),
    [
        (lambda size: 100 + 50 * size, 1),
        (lambda size: 30 * size * size, 1 / 2),
        (lambda size: 10 * size + 37 * (size % 3), 1 / 2),  # holes
        # Logits, up to a chunk of them: the line is too steep at first, which is the safe way.
        (lambda size: 100 + 50 * size + min(1000, 400 * size), 1 / 4),
    ],
)
def test_memory_plan_fits_and_takes_few_trials(grown, share):
    for room in range(150, 8000, 50):
        size, tried = search(grown, room)
        largest = max((power for power in POWERS if grown(power) <= room), default=0)
        assert largest * share <= size <= room
        assert not size or grown(size) <= room
        assert len(tried) == len(set(tried)) <= 10


def test_memory_plan_of_linear_growth_tries_only_fitting_sizes():
    for room in range(100, 5000, 50):
        size, tried = search(lambda size: 50 * size, room)
        assert size == max(power for power in POWERS if 50 * power <= room)
        assert all(50 * size <= room for size in tried)


PER_TOKEN = {"none": 1_000_000, "selective": 500_000, "full": 100_000}  # bytes of a token's passes
BASE, FULL_BATCH = 10**9, 16


@pytest.fixture
def model(monkeypatch):
    """A model whose steps need what PER_TOKEN says, and nothing else."""

    def grown(step, device):
        step()
        return PER_TOKEN[model.checkpointing] * tokens[-1]

    def loss(self, trained, batch):
        tokens.append(batch["labels"].numel())
        return real(self, trained, batch)

    model, tokens, real = tiny_model(max_seq_len=LENGTH), [], LanguageModeling.loss
    monkeypatch.setattr(memory_planner, "step_memory_growth", grown)
    monkeypatch.setattr(memory_planner, "_FRAGMENTATION_RATIO", 0.0)
    monkeypatch.setattr(memory_planner, "_RESERVED_BYTES", 0)
    monkeypatch.setattr(LanguageModeling, "loss", loss)
    return model


def plan(model, room, **options):
    """A plan for steps of 16 examples that may grow by `room`."""
    defaults = {"optimizer_bytes_per_param": 8, "base_bytes": BASE, "batch_size": FULL_BATCH}
    state = 8 * sum(parameter.numel() for parameter in model.parameters())
    limit = BASE + state + int(room)
    memory_plan = plan_memory(
        model, LanguageModeling(), batches_for, limit_bytes=limit, **{**defaults, **options}
    )
    assert memory_plan.predicted_bytes <= limit
    return memory_plan, memory_plan.predicted_bytes - BASE - state


@pytest.mark.catches("state_of_the_optimizer_takes_no_memory")
@pytest.mark.parametrize(
    ("tokens_that_fit", "expected"),
    [
        (16 * LENGTH, (16, 1, "none")),
        (16 * LENGTH - 1, (8, 2, "none")),
        (4 * LENGTH, (4, 4, "none")),  # 512 tokens
        (4 * LENGTH - 1, (4, 4, "selective")),  # and one fewer
        (2 * LENGTH - 1, (16, 1, "full")),
        (LENGTH / 10, (1, 16, "full")),  # none gets as far
    ],
)
def test_memory_plan_is_the_fastest_that_fits(model, tokens_that_fit, expected):
    memory_plan, grown = plan(model, tokens_that_fit * PER_TOKEN["none"])
    result = (
        memory_plan.batch_size,
        memory_plan.accumulate_grad_batches,
        memory_plan.activation_checkpointing,
    )
    assert result == expected
    assert grown == expected[0] * LENGTH * PER_TOKEN[expected[2]]


def test_memory_plan_of_an_unsplit_batch_has_no_minimum_tokens(model):
    memory_plan, _ = plan(model, 2 * LENGTH * PER_TOKEN["none"], batch_size=2)
    assert (memory_plan.batch_size, memory_plan.activation_checkpointing) == (2, "none")


def test_micro_batches_are_never_fewer_than_asked(model):
    memory_plan, _ = plan(model, 5 * LENGTH * PER_TOKEN["none"], batch_size=7)
    assert (memory_plan.batch_size, memory_plan.accumulate_grad_batches) == (4, 2)


def test_memory_plan_respects_a_gpu_smaller_than_the_limit(model, monkeypatch):
    def small(step, device):
        step()
        if model.embedding.weight.grad is not None and sizes[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sizes[-1]

    sizes, growing = [], memory_planner.count_positions
    monkeypatch.setattr(memory_planner, "step_memory_growth", small)
    monkeypatch.setattr(
        memory_planner,
        "count_positions",
        lambda batch: sizes.append(len(batch["labels"])) or growing(batch),
    )
    memory_plan, _ = plan(model, 10**12)
    assert (memory_plan.batch_size, memory_plan.activation_checkpointing) == (4, "none")


def test_memory_plan_prefers_no_recomputation(model, monkeypatch):
    monkeypatch.setitem(PER_TOKEN, "selective", PER_TOKEN["none"])
    monkeypatch.setitem(PER_TOKEN, "full", PER_TOKEN["none"])
    memory_plan, _ = plan(model, 2 * LENGTH * PER_TOKEN["none"])
    assert (memory_plan.batch_size, memory_plan.activation_checkpointing) == (2, "none")


def test_memory_limit_that_is_too_small_names_the_needed_size(model):
    with pytest.raises(
        UserError, match=r"memory_limit=1\.012 GB is too little: .* need 1\.013 GB, of which 1 GB"
    ):
        plan(model, LENGTH / 11 * PER_TOKEN["none"])


def test_memory_plan_description():
    memory_plan = memory_planner.MemoryPlan(4, 8, "selective", 3_250_000_000)
    expected = "8 batches of 4, accumulated; selective activation checkpointing; 3.25 GB predicted"
    assert memory_plan.summary().startswith(expected)
    assert (
        memory_planner.MemoryPlan(32, 1, "none", 10**9)
        .summary()
        .startswith("batches of 32; no activation")
    )


def test_memory_plan_uses_the_heaviest_batch(model):
    def uneven(size):
        for length in (LENGTH // 4, LENGTH, LENGTH // 2):
            yield next(batches_for(size, length=length))

    memory_plan = plan_memory(
        model, LanguageModeling(), uneven, batch_size=4, limit_bytes=10**12, base_bytes=0,
        optimizer_bytes_per_param=0,
    )  # fmt: skip
    assert memory_plan.predicted_bytes == 4 * LENGTH * PER_TOKEN["none"]


@pytest.mark.parametrize(("batch_size", "standing"), [(1, 1), (2, 2)])
def test_memory_plan_includes_gradients_in_accumulation(model, monkeypatch, batch_size, standing):
    """The second micro-batch of a step adds its gradients to those of the first."""

    def twice(step, device):
        sizes = []
        for _ in range(2):
            step()
            sizes.append(float(model.embedding.weight.grad.norm()))
        ratios.append(sizes[1] / sizes[0])
        return 0 if len(ratios) == 1 else 10**15  # only a micro-batch of 1 fits

    ratios = []
    monkeypatch.setattr(memory_planner, "step_memory_growth", twice)
    memory_plan, _ = plan(model, 0, batch_size=batch_size)
    assert memory_plan.batch_size == 1
    assert ratios[0] == pytest.approx(standing, rel=1e-4)


@pytest.mark.parametrize("room", [0, 10**12])
def test_memory_planner_restores_the_model(room):
    model = tiny_model(dropout=0.5, max_seq_len=LENGTH).train()
    model.layers[1].eval()
    set_activation_checkpointing(model, "selective")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    options = {"batch_size": 4, "limit_bytes": room, "optimizer_bytes_per_param": 8}
    if room:
        plan_memory(model, LanguageModeling(), batches_for, **options)
    else:
        with pytest.raises(UserError, match="too little"):
            plan_memory(model, LanguageModeling(), batches_for, **options)
    assert torch.equal(random, torch.get_rng_state())
    assert model.checkpointing == "selective"
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


TRAINING = """
import json, sys, torch
from miniformer.config import TransformerConfig
from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.model.transformer import Transformer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.tuning.memory_planner import plan_memory
from miniformer.training.optim.optimizers import adamw
from miniformer.training.tuning.memory_tracker import peak_memory

size, many, how = json.loads(sys.argv[1])
torch.manual_seed(0)
model = Transformer(TransformerConfig(vocab_size=8000, d_model=128, n_heads=2, n_layers=2,
                                      max_seq_len=256, causal=True, dropout=0.1)).train()
set_activation_checkpointing(model, how)
task, optimizer = LanguageModeling(), adamw(model, lr=1e-3, weight_decay=0.1)
def batches_for(size):
    while True:
        ids = torch.randint(0, 8000, (size, 257))
        yield {"input_ids": ids[:, :-1].clone(), "labels": ids[:, 1:].clone()}
if len(sys.argv) > 2:
    plan = plan_memory(model, task, batches_for, batch_size=size * many,
                       limit_bytes=int(sys.argv[2]), optimizer_bytes_per_param=8)
    print(json.dumps([plan.batch_size, plan.accumulate_grad_batches,
                      plan.activation_checkpointing, plan.predicted_bytes]))
    sys.exit()
for _ in range(4):
    for _ in range(many):
        task.loss(model, next(batches_for(size)))[0].backward()
    optimizer.step()
    optimizer.zero_grad()
print(peak_memory(torch.device("cpu")))  # ru_maxrss counts in the parent's, the tests' own
"""


@resettable
def test_memory_plan_predicts_the_memory_of_a_run():
    """Of another process, which has planned nothing: gradients, state, activations, libraries."""
    child = run_python("-c", TRAINING, json.dumps([8, 1, "none"]), 2 * 10**9)
    *choice, predicted = json.loads(child.stdout)
    assert choice == [8, 1, "none"]
    actual = int(run_python("-c", TRAINING, json.dumps(choice)).stdout)
    assert predicted == pytest.approx(actual, rel=0.2)
