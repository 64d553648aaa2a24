"""MiniFormerLitModule: exact optimizer steps, learning rates and logged metrics."""

import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from miniformer.config import UserError
from miniformer.training.callbacks.budget import Budget
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.optim.optimizers import adamw
from tests.kit import tiny_model
from tests.kit.clock import Clock
from tests.kit.training import cpu_trainer, labeled_batches

pytestmark = [  # hints of Lightning about the small loaders of these tests
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
]


def joined(parts):
    return {key: torch.cat([batch[key] for batch in parts]) for key in parts[0]}


def fit(train_batches, **options):
    """The module after one epoch over the batches."""
    # Without biases: the gradient of a key bias is rounding noise, which Adam amplifies.
    model = tiny_model(bias=False)
    module = MiniFormerLitModule(model, lr=0.01, scheduler="none", warmup_steps=0, **options)
    loader = DataLoader(train_batches, batch_size=None, shuffle=False)
    cpu_trainer(max_epochs=1, log_every_n_steps=1).fit(module, loader)
    return module


@pytest.mark.catches("loss_is_averaged_over_each_batch")
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_gradient_accumulation_matches_one_large_batch(clip):
    train_batches = labeled_batches([(2, 6), (3, 1), (1, 2), (4, 5)])
    small = fit(train_batches, accumulate_grad_batches=2, gradient_clip_val=clip)
    large = fit([joined(train_batches[:2]), joined(train_batches[2:])], gradient_clip_val=clip)
    assert small.trainer.global_step == large.trainer.global_step == 2
    for small_param, large_param in zip(
        small.model.parameters(), large.model.parameters(), strict=True
    ):
        torch.testing.assert_close(small_param, large_param, rtol=1e-4, atol=1e-5)


def test_training_step_matches_a_plain_loop():
    train_batches = labeled_batches([(2, 6), (3, 4), (2, 2)])
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
    (batch,) = labeled_batches([(3, 5)])
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
    cpu_trainer(max_steps=1).fit(module, DataLoader([batch], batch_size=None))
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
    train_batches = labeled_batches([(2, 6), (2, 6), (2, 6)])
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
    loader = DataLoader(labeled_batches([(2, 6)] * 5), batch_size=None)
    for _ in range(2):  # a second fit starts again
        rates = Rates()
        cpu_trainer(callbacks=[rates], **options).fit(module, loader)
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
    loader = DataLoader(labeled_batches([(2, 6)] * 5), batch_size=None)
    limited = cpu_trainer(callbacks=[Tick(), rates], max_epochs=-1, max_time={"seconds": 1})
    limited.fit(module, loader)
    assert rates.seen == [1 - 0.125 * step for step in range(1, 9)]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(labeled_batches([(2, 6)] * 3))


def test_lr_schedule_needs_an_end():
    loader = DataLoader(Endless(), batch_size=None)
    module = MiniFormerLitModule(tiny_model())
    with pytest.raises(UserError, match="scheduler=cosine needs to know when training ends"):
        cpu_trainer(max_epochs=1).fit(module, loader)
    cpu_trainer(max_epochs=1).fit(MiniFormerLitModule(tiny_model(), scheduler="none"), loader)


def test_training_step_rejects_a_scaled_loss():
    scaled = cpu_trainer(max_steps=1)
    scaled.precision_plugin.scaler = object()
    with pytest.raises(UserError, match="use precision='bf16-mixed' or '32-true'"):
        scaled.fit(
            MiniFormerLitModule(tiny_model()),
            DataLoader(labeled_batches([(2, 6)]), batch_size=None),
        )


def test_training_step_without_labels_keeps_weights_finite():
    module = fit(labeled_batches([(2, 0), (2, 6)]))
    assert all(parameter.isfinite().all() for parameter in module.model.parameters())
    assert torch.isfinite(module.train_loss)


def test_metrics_are_logged_at_optimizer_steps(tmp_path):
    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    module = MiniFormerLitModule(tiny_model(), accumulate_grad_batches=3)
    lightning_trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=logger, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=2,
    )  # fmt: skip
    lightning_trainer.fit(module, DataLoader(labeled_batches([(2, 6)] * 12), batch_size=None))
    (file,) = tmp_path.rglob("metrics.csv")
    lines = [line.split(",") for line in file.read_text().splitlines()]
    column = lines[0].index("step")
    assert [line[column] for line in lines[1:]] == ["2", "4"]
    logged = lightning_trainer.callback_metrics["train_loss"]
    assert float(logged) == pytest.approx(float(module.train_loss))


def test_warmup_ratio_of_the_run():
    module = MiniFormerLitModule(
        tiny_model(), budget=Budget(max_steps=100), scheduler="none", warmup_ratio=0.1
    )
    assert [module._lr_factor(step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])


@pytest.mark.catches("batch_of_another_rank_counts_again")
def test_filler_batch_of_a_device_counts_nothing():
    from miniformer.tasks.language_modeling import LanguageModeling
    from miniformer.training.lit_module import LossModule

    loss_module = LossModule(tiny_model(), LanguageModeling())
    (batch,) = labeled_batches([(2, 6)])
    loss, count = loss_module({**batch, "about": {"repeated": True}})
    assert (float(loss.detach()), float(count)) == (0.0, 0.0)
    loss.backward()  # other ranks wait for its gradients
    assert all(not p.grad.any() for p in loss_module.parameters() if p.grad is not None)
    loss, count = loss_module({**batch, "about": {"repeated": False}})
    assert float(loss.detach()) > 0
    assert float(count) == 12
