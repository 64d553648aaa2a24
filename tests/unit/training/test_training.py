import contextlib
import io
import json
import math
import signal
import types

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch.utils.data import DataLoader

from miniformer import TrainConfig, registry
from miniformer.config import UserError
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.interrupt import InterruptCallback, TrainingInterrupted
from miniformer.training.callbacks.progress import ProgressCallback
from miniformer.training.callbacks.validation import (
    BestModelCheckpoint,
    BudgetStopping,
    ValidationSchedule,
)
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.optim.optimizers import adamw
from miniformer.training.report.loggers import finish_loggers
from miniformer.training.setup.limits import max_total_steps
from miniformer.training.setup.prepare import prepare
from tests.kit import tiny_model
from tests.kit.clock import Clock

pytestmark = [  # hints of Lightning about the small loaders of these tests
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
]
SCHEDULES = registry.names("scheduler")


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_stays_within_0_and_1(name):
    schedule = registry.get("scheduler", name)
    values = [schedule(i / 1000) for i in range(1001)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(1.0 if name == "none" else 0.0)


@pytest.mark.catches("cosine_ends_at_a_half")
def test_schedules_at_known_points():
    at = {name: registry.get("scheduler", name) for name in SCHEDULES}
    assert at["cosine"](0.5) == pytest.approx(0.5)
    assert at["linear"](0.25) == pytest.approx(0.75)
    assert at["wsd"](0.8) == pytest.approx(1.0)
    assert at["wsd"](0.9) == pytest.approx(0.5)
    assert at["onecycle"](0.0) == pytest.approx(0.04)
    assert at["onecycle"](0.3) == pytest.approx(1.0)
    assert at["onecycle"](0.65) == pytest.approx(0.5)


def test_budget_ends_with_the_first_limit(monkeypatch):
    assert Budget(max_steps=10).progress(5) == 0.5
    assert Budget(max_steps=10).progress(20) == 1.0
    assert Budget().progress(5) == 0.0
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=1000, max_seconds=8.0)
    budget.start()
    clock.now += 2.0
    assert budget.progress(1) == 0.25
    assert budget.progress(500) == 0.5
    clock.now += 7.0
    assert budget.progress(1) == 1.0


def test_budget_starts_unspent(monkeypatch):
    Clock().install(monkeypatch)
    budget = Budget(max_epochs=2)
    budget.start()
    assert budget.state_dict() == {"epochs": 0.0, "seconds": 0.0, "validation_seconds": 0.0}
    assert budget.progress(9, epochs=1.0) == 0.5
    budget.epochs = 1.5
    assert budget.progress(9) == 0.75


@pytest.mark.parametrize(
    ("batches", "max_steps", "epochs", "devices", "accumulated", "expected"),
    [
        (7, None, 3, 1, 1, 21),
        (7, None, 3, 1, 2, 12),  # 4 steps in a pass, the last of one batch
        (7, None, 3, 2, 1, 12),  # 4 batches on a device
        (7, None, 3, 2, 3, 6),
        (7, 5, 3, 1, 1, 5),
        (7, 50, 3, 1, 1, 21),
        (7, 50, None, 1, 1, 50),
        (None, 50, 3, 1, 1, 50),
        (None, None, 3, 1, 1, None),
    ],
)
def test_max_total_steps_is_that_of_the_first_limit(
    batches, max_steps, epochs, devices, accumulated, expected
):
    loader = iter(()) if batches is None else range(batches)  # a stream has no length
    data = types.SimpleNamespace(train_dataloader=lambda: loader)
    config = types.SimpleNamespace(
        max_steps=max_steps,
        effective_max_epochs=epochs,
        world_size=devices,
        accumulate_grad_batches=accumulated,
    )
    assert max_total_steps(config, data) == expected


@pytest.mark.catches("time_left_is_time_gone")
def test_progress_estimates_the_remaining_time(monkeypatch):
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=10)
    budget.start(seconds=30.0)  # of a resumed run
    assert budget.remaining_seconds(0.0) == 0.0
    clock.now += 10.0
    assert budget.remaining_seconds(budget.progress(4)) == pytest.approx(60.0)
    assert budget.remaining_seconds(budget.progress(10)) == 0.0


@pytest.mark.catches("the_work_of_one_device_is_that_of_all")
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_monitor_reports_speed_and_mfu_of_all_devices(tmp_path, devices):
    """Each device does 4,000 FLOPs for each of 500 tokens in 10 s: 20 % of 1 MFLOP/s."""
    progress = ProgressCallback(
        Budget(max_steps=9), tmp_path / "metrics.jsonl", Console(file=io.StringIO()),
        flops_per_batch=lambda batch: 4000.0 * batch["about"]["tokens"],
        peak_flops=devices * 1e6, is_global_zero=False,
    )  # fmt: skip
    # Work within a step counts as well.
    module = types.SimpleNamespace(tokens=7, padding=0, between_steps=False)
    fake = types.SimpleNamespace(train_dataloader=types.SimpleNamespace(load_seconds=1.0))
    progress.budget.start()
    before = progress._snapshot(fake, module)._replace(seconds=100.0)
    for tokens in (300, 200):
        progress.on_train_batch_end(fake, module, None, {"about": {"tokens": tokens}}, 0)
    module.tokens += devices * 500
    fake.train_dataloader.load_seconds += 2.5
    after = progress._snapshot(fake, module)._replace(seconds=110.0)
    assert progress._throughput_since(before, after) == {
        "tokens_per_second": 50.0 * devices, "waiting": 0.25, "mfu": 0.2,
    }  # fmt: skip


@pytest.mark.catches("validation_counts_as_training")
def test_monitor_excludes_validation_time_after_a_resume(monkeypatch):
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=10)
    budget.start()
    clock.now += 5.0
    budget.start_validation()
    clock.now += 3.0
    assert (budget.local_seconds, budget.validation_seconds, budget.training_seconds) == (8, 3, 5)
    state = budget.state_dict()
    clock.now += 1.0
    budget.end_validation()
    clock.now += 2.0
    assert (budget.local_seconds, budget.validation_seconds, budget.training_seconds) == (11, 4, 7)
    resumed = Budget(max_steps=10)
    resumed.start(**state)
    clock.now += 2.0
    assert (resumed.local_seconds, resumed.training_seconds) == (10, 7)


@pytest.mark.catches("norms_and_embeddings_decay")
def test_weight_decay_is_for_linear_weights_only():
    model = tiny_model(tie_embeddings=False)
    groups = adamw(model, lr=1.0, weight_decay=0.5).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = {
        name for name, parameter in model.named_parameters() if decay.pop(id(parameter)) == 0.5
    }
    assert not decay
    assert names == {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "embedding" not in name
    }


def batches(sizes, length=6):
    """Batches with very different numbers of labels, so that averaging averages would show."""
    torch.manual_seed(1)
    created = []
    for size, labelled in sizes:
        ids = torch.randint(0, 31, (size, length + 1))
        labels = ids[:, 1:].clone()
        labels[:, labelled:] = -100
        segments = (labels != -100).long()
        created.append({"input_ids": ids[:, :-1], "labels": labels, "segment_ids": segments})
    return created


def joined(parts):
    return {key: torch.cat([batch[key] for batch in parts]) for key in parts[0]}


def trainer(**options):
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def fit(train_batches, **options):
    """The module after one epoch over the batches."""
    # Without biases: the gradient of a key bias is rounding noise, which Adam amplifies.
    model = tiny_model(bias=False)
    module = MiniFormerLitModule(model, lr=0.01, scheduler="none", warmup_steps=0, **options)
    loader = DataLoader(train_batches, batch_size=None, shuffle=False)
    trainer(max_epochs=1, log_every_n_steps=1).fit(module, loader)
    return module


@pytest.mark.catches("loss_is_averaged_over_each_batch")
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_gradient_accumulation_matches_one_large_batch(clip):
    train_batches = batches([(2, 6), (3, 1), (1, 2), (4, 5)])
    small = fit(train_batches, accumulate_grad_batches=2, gradient_clip_val=clip)
    large = fit([joined(train_batches[:2]), joined(train_batches[2:])], gradient_clip_val=clip)
    assert small.trainer.global_step == large.trainer.global_step == 2
    for small_param, large_param in zip(
        small.model.parameters(), large.model.parameters(), strict=True
    ):
        torch.testing.assert_close(small_param, large_param, rtol=1e-4, atol=1e-5)


def test_training_step_matches_a_plain_loop():
    train_batches = batches([(2, 6), (3, 4), (2, 2)])
    module = fit(train_batches, gradient_clip_val=0.7, optimizer="adamw")
    model = tiny_model(bias=False)
    optimizer = adamw(model, lr=0.01, weight_decay=0.1)
    for batch in train_batches:
        logits = model(batch["input_ids"], segment_ids=batch["segment_ids"])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        optimizer.step()
    assert float(module.train_loss) == pytest.approx(float(loss.detach()), rel=1e-5)
    for actual, expected in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.catches("short_gradients_are_lengthened", "gradients_are_clipped_to_twice_the_limit")
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999, 1.0, 1.001, 2.0, 1e6])
def test_gradient_clipping_matches_torch(share):
    """With SGD, whose steps are proportional to gradients; the limit is a fraction of the norm."""
    (batch,) = batches([(3, 5)])
    model = tiny_model()

    def gradients():
        model.zero_grad()
        logits = model(batch["input_ids"], segment_ids=batch["segment_ids"])
        F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()).backward()

    gradients()
    norm = float(torch.nn.utils.get_total_norm(p.grad for p in model.parameters()))
    limit = share * norm
    module = MiniFormerLitModule(
        tiny_model(), lr=0.5, scheduler="none", warmup_steps=0, gradient_clip_val=limit
    )
    module._make_optimizer = lambda trained, lr, weight_decay: torch.optim.SGD(
        trained.parameters(), lr
    )
    trainer(max_steps=1).fit(module, DataLoader([batch], batch_size=None))
    gradients()
    if limit:
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    torch.optim.SGD(model.parameters(), 0.5).step()
    moved = math.sqrt(
        sum(
            float((new - old).detach().double().square().sum())
            for new, old in zip(module.model.parameters(), before, strict=True)
        )
    )
    assert moved == pytest.approx(0.5 * min(norm, limit or norm), rel=1e-5)
    assert float(module.gradient_norm) == pytest.approx(norm, rel=1e-5)
    for actual, expected in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_gradient_accumulation_uses_the_last_batches_of_an_epoch():
    train_batches = batches([(2, 6), (2, 6), (2, 6)])
    assert fit(train_batches, accumulate_grad_batches=2).trainer.global_step == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scheduler": "none"}, [1, 1, 1]),
        ({"scheduler": "linear", "warmup_steps": 0}, [1, 0.99, 0.98]),
        ({"scheduler": "none", "warmup_steps": 2}, [0.5, 1, 1]),
        ({"scheduler": "cosine"}, [0.2, 0.4 * math.cos(math.pi / 200) ** 2, 0.6]),
        ({"scheduler": "onecycle"}, [0.04, 0.0426, 0.0505]),
    ],
)
def test_lr_warms_up_then_follows_the_schedule(options, expected):
    module = MiniFormerLitModule(tiny_model(), budget=Budget(max_steps=100), **options)
    assert [module._lr_factor(step) for step in range(3)] == pytest.approx(expected, abs=2e-3)


class Rates(L.Callback):
    """Records the learning rate of each optimizer step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *args):
        if len(self.seen) < trainer.global_step:
            self.seen.append(module.current_lr)


@pytest.mark.parametrize(
    ("options", "accumulate", "steps"),
    [
        ({"max_epochs": 2}, 1, 10),
        ({"max_epochs": 2}, 2, 6),  # 5 batches an epoch: 2 + 2 + 1
        ({"max_epochs": 2, "max_steps": 4}, 2, 4),
        ({"max_epochs": -1, "max_steps": 7}, 1, 7),
    ],
)
def test_lr_schedule_covers_the_steps_of_a_custom_trainer(options, accumulate, steps):
    module = MiniFormerLitModule(
        tiny_model(), lr=1.0, scheduler="linear", warmup_steps=0, accumulate_grad_batches=accumulate
    )
    loader = DataLoader(batches([(2, 6)] * 5), batch_size=None)
    for _ in range(2):  # a second fit starts again
        rates = Rates()
        trainer(callbacks=[rates], **options).fit(module, loader)
        assert rates.seen == pytest.approx([1 - step / steps for step in range(steps)])


def test_lr_schedule_follows_max_time_of_a_custom_trainer(monkeypatch):
    """Each batch takes an eighth of the time limit."""
    clock = Clock().install(monkeypatch)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", clock)

    class Tick(L.Callback):
        def on_train_batch_start(self, *args):
            clock.now += 0.125

    module = MiniFormerLitModule(tiny_model(), lr=1.0, scheduler="linear", warmup_steps=0)
    rates = Rates()
    loader = DataLoader(batches([(2, 6)] * 5), batch_size=None)
    limited = trainer(callbacks=[Tick(), rates], max_epochs=-1, max_time={"seconds": 1})
    limited.fit(module, loader)
    assert rates.seen == [1 - 0.125 * step for step in range(1, 9)]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(batches([(2, 6)] * 3))


def test_lr_schedule_needs_an_end():
    loader = DataLoader(Endless(), batch_size=None)
    module = MiniFormerLitModule(tiny_model())
    with pytest.raises(UserError, match="scheduler=cosine needs to know when training ends"):
        trainer(max_epochs=1).fit(module, loader)
    trainer(max_epochs=1).fit(MiniFormerLitModule(tiny_model(), scheduler="none"), loader)


def test_training_step_rejects_a_scaled_loss():
    scaled = trainer(max_steps=1)
    scaled.precision_plugin.scaler = object()
    with pytest.raises(UserError, match="use precision='bf16-mixed' or '32-true'"):
        scaled.fit(
            MiniFormerLitModule(tiny_model()), DataLoader(batches([(2, 6)]), batch_size=None)
        )


def test_training_step_without_labels_keeps_weights_finite():
    module = fit(batches([(2, 0), (2, 6)]))
    assert all(parameter.isfinite().all() for parameter in module.model.parameters())
    assert torch.isfinite(module.train_loss)


def test_metrics_are_logged_at_optimizer_steps(tmp_path):
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    module = MiniFormerLitModule(tiny_model(), accumulate_grad_batches=3)
    lightning_trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2,
    )  # fmt: skip
    lightning_trainer.fit(module, DataLoader(batches([(2, 6)] * 12), batch_size=None))
    (file,) = tmp_path.rglob("metrics.csv")
    lines = [line.split(",") for line in file.read_text().splitlines()]
    column = lines[0].index("step")
    assert [line[column] for line in lines[1:]] == ["2", "4"]
    logged = lightning_trainer.callback_metrics["train_loss"]
    assert float(logged) == pytest.approx(float(module.train_loss))


@pytest.mark.parametrize(
    ("interval", "steps", "expected"), [(2, 7, [2, 4, 6, 7]), (None, 10, [2, 4, 6, 8, 10])]
)
def test_validation_interval_counts_optimizer_steps(interval, steps, expected):
    """5 batches an epoch, two a step: the third step of each epoch has one batch only."""
    budget, validated = Budget(max_steps=steps), []
    module = MiniFormerLitModule(tiny_model(), accumulate_grad_batches=2, budget=budget)

    class Note(L.Callback):
        def on_validation_end(self, trainer, module):
            validated.append(trainer.global_step)

    schedule = ValidationSchedule(budget, every_n_steps=interval)
    lightning_trainer = trainer(
        max_epochs=-1, check_val_every_n_epoch=None, val_check_interval=1, num_sanity_val_steps=0,
        callbacks=[BudgetStopping(budget, print), schedule, Note()],
    )  # fmt: skip
    train_batches = batches([(2, 6)] * 5)
    val_batches = train_batches[:1]
    lightning_trainer.fit(
        module,
        DataLoader(train_batches, batch_size=None),
        DataLoader(val_batches, batch_size=None),
    )
    assert validated == expected


def test_validation_interval_follows_the_first_limit():
    class At(Budget):
        def progress(self, steps):
            return steps / 20  # the time limit is reached at step 20, before max_steps

    schedule = ValidationSchedule(At(max_steps=1000, max_seconds=5))
    fake, module = types.SimpleNamespace(global_step=0), types.SimpleNamespace(between_steps=True)
    validated = []
    for fake.global_step in range(1, 21):
        schedule.on_train_batch_end(fake, module)
        if fake.val_check_batch == 1:
            validated.append(fake.global_step)
            schedule.on_validation_end(fake, None)
    assert validated == [4, 8, 12, 16, 20]


def test_best_model_is_never_one_with_a_nan_loss():
    saved = []
    checkpoint = BestModelCheckpoint(saved.append)
    fake = types.SimpleNamespace(global_step=3, callback_metrics={"val_loss": float("nan")})
    with pytest.raises(UserError, match="the validation loss is nan at step 3"):
        checkpoint.on_validation_end(fake, None)
    assert not saved


@pytest.mark.catches("best_model_has_the_smallest_accuracy")
@pytest.mark.parametrize(
    ("maximize", "expected_saved", "last_step"), [(True, [1, 2, 4, 5, 6], 8), (False, [1, 3], 5)]
)
def test_best_model_and_early_stopping_follow_the_metric(maximize, expected_saved, last_step):
    saved = []
    checkpoint = BestModelCheckpoint(
        lambda metrics: saved.append(metrics["step"]),
        monitor="val_accuracy", maximize=maximize, patience=2,
    )  # fmt: skip
    fake = types.SimpleNamespace(should_stop=False)
    losses = [
        8.0,
        7.0,
        6.0,
        5.0,
        4.0,
        3.0,
        4.0,
        2.0,
        4.0,
    ]  # of equal accuracies, the lower loss is better
    accuracies = [0.5, 0.6, 0.4, 0.65, 0.7, 0.7, 0.7, 0.1, 0.1]
    for step, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1):
        fake.global_step = step
        fake.callback_metrics = {"val_loss": loss, "val_accuracy": accuracy}
        checkpoint.on_validation_end(fake, None)
        if fake.should_stop:
            break
    assert (saved, step) == (expected_saved, last_step)


RECORDS = {
    "classification": ("accuracy", {"input": "a", "label": "b"}),
    "regression": ("rmse", {"input": "a", "value": 1}),
    "language_modeling": ("loss", {"text": "a"}),
    "masked_lm": ("loss", {"text": "a"}),
    "seq2seq": ("loss", {"source": "a", "target": "b"}),
}


@pytest.mark.catches("best_model_is_that_of_the_loss")
@pytest.mark.parametrize("task", RECORDS)
def test_checkpoint_metric_default_is_that_of_the_task(task, tmp_path):
    metric, record = RECORDS[task]
    second = {"classification": {"label": "c"}, "regression": {"value": 2}}
    path = tmp_path / "train.jsonl"
    path.write_text(
        json.dumps(record) + "\n" + json.dumps({**record, **second.get(task, {})}) + "\n"
    )
    settings = {"train_path": str(path), "val_path": str(path), "task": task}
    console = Console(file=io.StringIO())
    assert prepare(TrainConfig(**settings), console).metric == metric
    assert prepare(TrainConfig(**settings, checkpoint_metric="loss"), console).metric == "loss"


def test_finish_loggers_ends_wandb_runs_only():
    class Stub(L.pytorch.loggers.WandbLogger):
        def __init__(self):
            self.finished = 0

        @property
        def experiment(self):
            return types.SimpleNamespace(finish=self.note)

        def note(self):
            self.finished += 1

    stub = Stub()
    finish_loggers([L.pytorch.loggers.CSVLogger("."), stub])
    assert stub.finished == 1


def test_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with InterruptCallback() as interrupt:
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def _default_signals():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.catches("signal_handlers_stay")
@pytest.mark.usefixtures("_default_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_handlers_are_restored(number):
    before = signal.getsignal(number)
    with contextlib.suppress(TrainingInterrupted), InterruptCallback() as interrupt:
        signal.raise_signal(number)
        assert interrupt.signal == number
        interrupt.on_train_batch_end()
    assert signal.getsignal(number) is before
    with contextlib.suppress(KeyError), InterruptCallback():
        raise KeyError
    assert signal.getsignal(number) is before


@pytest.mark.catches("validation_comes_within_a_step")
def test_validation_never_interrupts_gradient_accumulation():
    """A time limit may be due there; the validation would clear the gradients of the step."""
    clock = types.SimpleNamespace(progress=lambda step: clock.now, now=0.0)
    schedule = ValidationSchedule(clock)
    fake, module = types.SimpleNamespace(global_step=1), types.SimpleNamespace(between_steps=True)
    schedule.on_train_batch_end(fake, module)
    clock.now, module.between_steps = 0.5, False
    schedule.on_train_batch_end(fake, module)
    assert fake.val_check_batch != 1
    fake.global_step, module.between_steps = 2, True
    schedule.on_train_batch_end(fake, module)
    assert fake.val_check_batch == 1


def test_signals_of_a_launcher_are_one_interrupt():
    with contextlib.suppress(TrainingInterrupted), InterruptCallback(grace_period=60) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        interrupt.on_train_batch_end()


def test_interrupt_stops_devices_after_the_same_step():
    """The rank with the signal sends it to the others with the next step; then all stop."""
    module = types.SimpleNamespace(stop_requested=False, between_steps=True)
    trainer = types.SimpleNamespace(world_size=2)
    with InterruptCallback(grace_period=60) as interrupt:
        interrupt.on_train_batch_end(trainer, module)
        assert not module.stop_requested
        signal.raise_signal(signal.SIGTERM)
        interrupt.on_train_batch_end(trainer, module)
        assert module.stop_requested  # a request, which the next step reduces over devices
        with pytest.raises(TrainingInterrupted):
            interrupt.on_train_batch_end(trainer, module)


def test_warmup_ratio_of_the_run():
    module = MiniFormerLitModule(
        tiny_model(), budget=Budget(max_steps=100), scheduler="none", warmup_ratio=0.1
    )
    assert [module._lr_factor(step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])


@pytest.mark.catches("compilation_pays_back_in_batches")
def test_compile_summary_has_cost_and_speedup():
    from miniformer.training.tuning.compile import format_compile_summary

    assert format_compile_summary(10.0, 0.05, 0.03, 1, 2000).endswith(
        "it pays back after 500 steps of 2,000"
    )
    assert format_compile_summary(10.0, 0.05, 0.03, 2, None).endswith(
        "it pays back after 250 steps"
    )
    assert "does not pay back here; leave out --compile" in format_compile_summary(
        10.0, 0.05, 0.06, 1, None
    )


@pytest.mark.catches("batch_of_another_rank_counts_again")
def test_filler_batch_of_a_device_counts_nothing():
    from miniformer.tasks.language_modeling import LanguageModeling
    from miniformer.training.loss_module import LossModule

    loss_module = LossModule(tiny_model(), LanguageModeling())
    (batch,) = batches([(2, 6)])
    loss, count = loss_module({**batch, "about": {"repeated": True}})
    assert (float(loss.detach()), float(count)) == (0.0, 0.0)
    loss.backward()  # other ranks wait for its gradients
    assert all(not p.grad.any() for p in loss_module.parameters() if p.grad is not None)
    loss, count = loss_module({**batch, "about": {"repeated": False}})
    assert float(loss.detach()) > 0
    assert float(count) == 12
