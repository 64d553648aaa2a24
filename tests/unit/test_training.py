import math
import time

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from miniformer import registry
from miniformer.training.budget import Budget
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.optimizers import adamw
from tests.kit import tiny_model

pytestmark = [  # hints of Lightning's about the small loaders made here
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
]
SCHEDULES = registry.names("scheduler")


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_stays_within_0_and_1(name):
    schedule = registry.get("scheduler", name)
    values = [schedule(i / 1000) for i in range(1001)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(1.0 if name == "none" else 0.0)


def test_schedules_at_known_points():
    at = {name: registry.get("scheduler", name) for name in SCHEDULES}
    assert at["cosine"](0.5) == pytest.approx(0.5)
    assert at["linear"](0.25) == pytest.approx(0.75)
    assert at["wsd"](0.8) == pytest.approx(1.0)
    assert at["wsd"](0.9) == pytest.approx(0.5)
    assert at["onecycle"](0.0) == pytest.approx(0.04)
    assert at["onecycle"](0.3) == pytest.approx(1.0)
    assert at["onecycle"](0.65) == pytest.approx(0.5)


def test_a_budget_ends_with_whichever_limit_comes_first():
    assert Budget(max_steps=10).progress(5) == 0.5
    assert Budget(max_steps=10).progress(20) == 1.0
    assert Budget().progress(5) == 0.0
    budget = Budget(max_steps=1000, max_seconds=0.01)
    budget.start()
    time.sleep(0.02)
    assert budget.progress(1) == 1.0


def test_only_the_matrices_of_linear_layers_decay():
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
    made = []
    for size, labelled in sizes:
        ids = torch.randint(0, 31, (size, length + 1))
        labels = ids[:, 1:].clone()
        labels[:, labelled:] = -100
        segments = (labels != -100).long()
        made.append({"input_ids": ids[:, :-1], "labels": labels, "segment_ids": segments})
    return made


def joined(made):
    return {key: torch.cat([batch[key] for batch in made]) for key in made[0]}


def fit(made, **options):
    """A model after one epoch over the batches."""
    # Without biases: that of a key has no gradient but rounding, which Adam would blow up.
    model = tiny_model(bias=False)
    module = MiniFormerLitModule(model, lr=0.01, scheduler="none", warmup_steps=0, **options)
    loader = DataLoader(made, batch_size=None, shuffle=False)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader)
    return module


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_accumulating_batches_is_one_large_batch(clip):
    made = batches([(2, 6), (3, 1), (1, 2), (4, 5)])
    small = fit(made, accumulate_grad_batches=2, gradient_clip_val=clip)
    large = fit([joined(made[:2]), joined(made[2:])], gradient_clip_val=clip)
    assert small.trainer.global_step == large.trainer.global_step == 2
    for one, other in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_step_is_the_one_of_a_plain_loop():
    made = batches([(2, 6), (3, 4), (2, 2)])
    module = fit(made, gradient_clip_val=0.7)
    model = tiny_model(bias=False)
    optimizer = adamw(model, lr=0.01, weight_decay=0.1)
    for batch in made:
        logits = model(batch["input_ids"], segment_ids=batch["segment_ids"])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        optimizer.step()
    assert float(module.train_loss) == pytest.approx(float(loss.detach()), rel=1e-5)
    for one, other in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_last_batches_of_an_epoch_are_not_lost():
    made = batches([(2, 6), (2, 6), (2, 6)])
    assert fit(made, accumulate_grad_batches=2).trainer.global_step == 2


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"scheduler": "none"}, [1, 1, 1]),
        ({"scheduler": "linear", "warmup_steps": 0}, [1, 0.99, 0.98]),
        ({"scheduler": "none", "warmup_steps": 2}, [0.5, 1, 1]),
        ({"scheduler": "cosine"}, [0.2, 0.4 * math.cos(math.pi / 200) ** 2, 0.6]),
        ({"scheduler": "onecycle"}, [0.04, 0.0426, 0.0505]),
    ],
)
def test_the_learning_rate_goes_up_then_follows_the_schedule(options, wanted):
    module = MiniFormerLitModule(tiny_model(), budget=Budget(max_steps=100), **options)
    assert [module._factor(step) for step in range(3)] == pytest.approx(wanted, abs=2e-3)
