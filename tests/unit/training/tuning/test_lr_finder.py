"""Learning rate and batch size finders, independent of the speed of the machine."""

import itertools
import math

import pytest
import torch
from torch import nn

from miniformer.config import UserError
from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.optim.optimizers import adamw
from miniformer.training.tuning import lr_finder
from miniformer.training.tuning.lr_finder import BatchSizeFinderResult, find_batch_size, find_lr
from tests.kit import tiny_model


class Bowl(LanguageModeling):
    """Loss of a weight w at curvature h: h w^2 / 2 for each example."""

    def loss(self, model, batch):
        losses = 0.5 * batch["curvature"] * model.weight.square().sum()
        return losses.sum(), torch.tensor(float(len(losses)))


def bowl(weight=1.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def curvatures(*values):
    return [{"curvature": torch.tensor(value)} for value in values]


def sgd(model, *, lr):
    return torch.optim.SGD(model.parameters(), lr=lr)


def descent(curvatures, rates, weight=1.0, smoothing=0.9, clip=math.inf):
    """Smoothed losses of plain gradient descent on bowls, up to where it diverges."""
    losses, smooth = [], []
    for curvature, rate in zip(curvatures, rates, strict=False):
        losses.append(0.5 * curvature * weight**2)
        weights = [smoothing**age for age in range(len(losses))][::-1]
        mean = sum(a * b for a, b in zip(weights, losses, strict=True)) / sum(weights)
        if mean > 4 * min([*smooth, mean]):
            return smooth
        smooth.append(mean)
        slope = curvature * weight
        weight -= rate * max(-clip, min(clip, slope))
    return smooth


def exponential(low, high, steps):
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


@pytest.mark.catches("rate_of_the_lowest_loss_is_suggested")
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_lr_finder_is_gradient_descent_at_rising_rates(clip):
    result = find_lr(
        bowl(), Bowl(), curvatures([1.0], [3.0]), sgd, min_lr=1e-3, max_lr=100.0, num_steps=60,
        gradient_clip_val=clip,
    )  # fmt: skip
    rates = exponential(1e-3, 100.0, 60)
    expected = descent(itertools.cycle([1.0, 3.0]), rates, clip=clip or math.inf)
    assert len(expected) < 60  # it diverges on the way
    assert result.losses == pytest.approx(expected, rel=1e-3)
    assert result.lrs == pytest.approx(rates[: len(expected)])
    lowest = rates[expected.index(min(expected))]
    assert result.suggestion == pytest.approx(lowest / 10)


def test_lr_finder_stops_soon_after_divergence():
    """On a bowl of curvature h gradient descent diverges from 2 / h on."""
    for curvature in (1.0, 10.0):
        result = find_lr(
            bowl(), Bowl(), curvatures([curvature]), sgd, min_lr=1e-4, max_lr=1e4, num_steps=200
        )
        assert 2 / curvature < result.lrs[-1] < 10 * 2 / curvature
        assert 2 / curvature / 100 < result.suggestion < 2 / curvature


def test_lr_finder_accumulates_batches():
    """However unevenly they are spread, the loss is the sum divided once."""
    parts = curvatures([1.0, 2.0, 6.0], [7.0])
    joined = curvatures([1.0, 2.0, 6.0, 7.0])
    options = {"min_lr": 1e-3, "max_lr": 0.1, "num_steps": 20, "gradient_clip_val": 0.0}
    apart = find_lr(bowl(), Bowl(), parts, sgd, accumulate_grad_batches=2, **options)
    assert apart.losses == pytest.approx(find_lr(bowl(), Bowl(), joined, sgd, **options).losses)


def test_lr_finder_scales_the_lr_of_groups():
    def scaled(model, *, lr):
        return torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 0.1}], lr=lr)

    options = {"num_steps": 30, "gradient_clip_val": 0.0}
    batches = curvatures([1.0])
    result = find_lr(bowl(), Bowl(), batches, scaled, min_lr=1e-2, max_lr=10.0, **options)
    expected = find_lr(bowl(), Bowl(), batches, sgd, min_lr=1e-3, max_lr=1.0, **options)
    assert result.losses == pytest.approx(expected.losses)


def test_lr_finder_ends_at_a_nan_loss():
    batches = curvatures([1.0], [1.0], [1.0], [math.nan], [1.0])
    result = find_lr(bowl(), Bowl(), batches, sgd, min_lr=1e-4, max_lr=1e-3, num_steps=50)
    assert len(result.lrs) == 3
    assert all(map(math.isfinite, result.losses))
    with pytest.raises(UserError, match="the loss is nan before any step"):
        find_lr(bowl(), Bowl(), curvatures([math.nan]), sgd)
    with pytest.raises(UserError, match="no training data"):
        find_lr(bowl(), Bowl(), [], sgd)


def test_lr_finder_reports_progress():
    calls = []
    find_lr(
        bowl(), Bowl(), curvatures([1.0]), sgd, max_lr=1e-3, num_steps=5,
        progress=lambda *done: calls.append(done),
    )  # fmt: skip
    assert calls == [(step, 5) for step in range(1, 6)]


# The model is restored


def batches_for(size, length=16):
    generator = torch.Generator().manual_seed(size)
    while True:
        ids = torch.randint(0, 31, (size, length + 1), generator=generator)
        yield {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "about": {}}


def make_adamw(model, *, lr):
    return adamw(model, lr=lr, weight_decay=0.1)


def fails(*done):
    raise KeyError


@pytest.mark.catches("trial_moves_the_random_state")
@pytest.mark.parametrize(
    "search",
    [
        lambda model: find_lr(model, LanguageModeling(), batches_for(2), make_adamw, num_steps=5),
        lambda model: find_lr(
            model, LanguageModeling(), batches_for(2), make_adamw, min_lr=0.1, progress=fails
        ),
        lambda model: find_batch_size(
            model, LanguageModeling(), lambda size: batches_for(min(size, 4)), min_seconds=0
        ),
    ],
)
def test_lr_finder_restores_the_model(search):
    model = tiny_model(dropout=0.5).train()
    model.layers[1].eval()
    set_activation_checkpointing(model, "full")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    try:
        search(model)
    except KeyError:
        assert search.__code__.co_names  # the one that fails half-way
    assert torch.equal(random, torch.get_rng_state())
    assert model.checkpointing == "full"
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_lr_finder_trains_with_dropout():
    model = tiny_model(dropout=0.5)  # in eval mode
    seen = []

    class Note(LanguageModeling):
        def loss(self, model, batch):
            seen.append(model.training)
            return super().loss(model, batch)

    find_lr(model, Note(), batches_for(2), make_adamw, num_steps=2)
    assert seen == [True, True]
    assert not model.training


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.catches("range_test_is_not_drawn")
def test_lr_finder_plots_its_curve(tmp_path):
    result = find_lr(tiny_model(), LanguageModeling(), batches_for(2), make_adamw, num_steps=4)
    result.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]


# Batch sizes

LENGTH = 16


class Machine(LanguageModeling):
    """A device with a simulated clock and memory: a batch of B takes `overhead` + B seconds."""

    def __init__(self, monkeypatch, *, overhead, memory=lambda size: 1000 * size, most=None):
        super().__init__()
        own = {"now": 0.0, "overhead": overhead, "memory": memory, "most": most, "size": 0}
        object.__setattr__(self, "own", own)
        monkeypatch.setattr(lr_finder, "step_memory_growth", self.growth)

    def loss(self, model, batch):
        own, size = self.own, len(batch["labels"])
        own["size"] = size
        if own["most"] is not None and size > own["most"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        own["now"] += own["overhead"] + size
        weight = next(model.parameters())
        return weight.sum(), weight.new_tensor(size)

    def growth(self, step, device):
        step()
        return self.own["memory"](self.own["size"])

    def search(self, batches=batches_for, **options):
        options = {"memory_limit": 10**9, "min_seconds": 5.0, **options}
        model = tiny_model()
        return find_batch_size(model, self, batches, clock=lambda: self.own["now"], **options)


@pytest.mark.parametrize("overhead", [0.01, 1.0, 10.0, 60.0])
def test_batch_size_finder_selects_the_smallest_that_is_nearly_fastest(monkeypatch, overhead):
    result = Machine(monkeypatch, overhead=overhead).search()
    speeds = {size: LENGTH * size / (overhead + size) for size in (2**k for k in range(14))}
    last = next(size for size in list(speeds)[1:] if speeds[size] < 1.05 * speeds[size // 2])
    assert result.batch_sizes == [2**k for k in range(last.bit_length())]
    assert result.tokens_per_second == pytest.approx([speeds[size] for size in result.batch_sizes])
    near = [size for size in result.batch_sizes if speeds[size] >= speeds[last] / 1.05]
    assert result.suggestion == near[0]
    assert result.stop_reason == f"{last} is hardly faster than {last // 2}"


@pytest.mark.catches("next_batch_is_expected_to_take_no_more")
def test_batch_size_finder_ends_before_memory_is_full(monkeypatch):
    tried = []
    machine = Machine(
        monkeypatch, overhead=1000.0, memory=lambda size: tried.append(size) or 500 + 1000 * size
    )
    result = machine.search(memory_limit=10_000)
    assert result.batch_sizes == tried == [1, 2, 4, 8]
    assert result.memory_bytes == [1500, 2500, 4500, 8500]
    assert result.suggestion == 8
    assert result.stop_reason.startswith("16 would take more")


def test_batch_size_finder_rejects_a_size_that_takes_more_than_predicted(monkeypatch):
    machine = Machine(monkeypatch, overhead=1000.0, memory=lambda size: 100 * size**3)
    result = machine.search(memory_limit=20_000)
    assert result.batch_sizes == [1, 2, 4]  # 800 -> 6,400 -> 51,200 by the cube
    assert result.stop_reason.startswith("8 takes")


def test_batch_size_finder_ends_at_out_of_memory(monkeypatch):
    result = Machine(monkeypatch, overhead=1000.0, most=8).search()
    assert result.batch_sizes == [1, 2, 4, 8]
    assert result.stop_reason == "16 takes more memory than there is"
    with pytest.raises(UserError, match="4 takes more memory than there is; make the model"):
        Machine(monkeypatch, overhead=1000.0, most=2).search(initial_batch_size=4)


def test_batch_size_finder_ends_with_the_data(monkeypatch):
    """For a batch of 8 of 5 examples the data returns all 5, or none."""
    smaller = Machine(monkeypatch, overhead=1000.0).search(lambda size: batches_for(min(size, 5)))
    none = Machine(monkeypatch, overhead=1000.0).search(
        lambda size: batches_for(size) if size <= 5 else iter(())
    )
    for result in (smaller, none):
        assert result.batch_sizes == [1, 2, 4]
        assert result.stop_reason == "the data has no batch of 8"


def test_batch_size_finder_table_marks_the_selected_size():
    lines = BatchSizeFinderResult(
        [1, 2], [100.0, 1900.4], [10**6, 2 * 10**9], "2 was enough", 2
    ).format_table()
    assert len({len(line.split("  <-")[0]) for line in lines[:-1]}) == 1
    assert lines[1].split() == ["1", "100", "1", "MB"]
    assert lines[2].split() == ["2", "1,900", "2", "GB", "<-", "suggested"]
    assert lines[3] == "2 was enough"
