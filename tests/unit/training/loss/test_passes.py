"""TrainingPasses: loss terms and several passes within the one exact step."""

import dataclasses
import pickle
from typing import ClassVar

import pytest
import torch
from torch.utils.data import DataLoader

from miniformer import registry
from miniformer.model.execution_settings import set_activation_checkpointing
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.loss_terms import LossTerm
from miniformer.training.lit_module import MiniFormerLitModule
from tests.kit import loss_plugins, tiny_model
from tests.kit.loss_plugins import Chunked, Contrastive, Distillation, GradCache
from tests.kit.training import cpu_trainer, labeled_batches

pytestmark = [  # hints of Lightning about the small loaders of these tests
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
]
TERMS = [
    {"type": "row_length", "weight": 0.5, "scale": 2.0},
    {"type": "z_loss", "weight": 0.01},
    {"type": "drift", "weight": 0.3},
]


@pytest.fixture(autouse=True, scope="module")
def registered():
    with loss_plugins.registered():
        yield


@dataclasses.dataclass(frozen=True)
class TwoTerms(LanguageModeling):
    """Terms of the task itself: one with its own count, one with that of the loss."""

    name: ClassVar[str] = "two_terms"
    loss_terms: ClassVar[tuple[str, ...]] = ("rows", "squares")

    def loss(self, model, batch):
        rows = LossTerm(*loss_plugins.row_length(model, batch), weight=0.5)
        squares = loss_plugins.z_loss(model, batch)._replace(weight=0.01)
        return *super().loss(model, batch), {"rows": rows, "squares": squares}


def batches():
    return labeled_batches([(2, 6), (3, 1), (1, 2), (4, 5)])


def joined(parts):
    return {key: torch.cat([batch[key] for batch in parts]) for key in parts[0]}


def fit(train_batches, trainer=None, model=None, **options):
    """The module after one epoch of SGD over the batches, whose steps show gradients."""
    options = {"gradient_clip_val": 0.0, **options}
    model = tiny_model() if model is None else model
    module = MiniFormerLitModule(model, lr=0.1, scheduler="none", warmup_steps=0, **options)
    module._make_optimizer = lambda model, lr, **others: torch.optim.SGD(model.parameters(), lr)
    loader = DataLoader(train_batches, batch_size=None, shuffle=False)
    cpu_trainer(max_epochs=1, log_every_n_steps=1, **(trainer or {})).fit(module, loader)
    return module


def assert_same(first, second, *, atol=1e-6):
    assert first.trainer.global_step == second.trainer.global_step > 1
    for actual, expected in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)
    assert first.train_metrics() == pytest.approx(second.train_metrics(), rel=1e-5)


@pytest.mark.catches("gradients_of_accumulated_terms_are_lost")
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("options", [{"task": TwoTerms()}, {"loss_terms": TERMS}])
def test_accumulated_terms_match_one_large_batch(options, clip):
    options = {**options, "gradient_clip_val": clip}
    parts = batches()
    small = fit(parts, accumulate_grad_batches=2, **options)
    large = fit([joined(parts[:2]), joined(parts[2:])], **options)
    assert_same(small, large)
    if "loss_terms" in options:
        first, second = (m.passes.terms.state_dict()["drift"]["mean"] for m in (small, large))
        torch.testing.assert_close(first, second)


@pytest.mark.catches("terms_have_the_count_of_the_loss")
def test_terms_match_a_plain_loop():
    module = fit(batches(), loss_terms=TERMS)
    model, mean = tiny_model(), torch.zeros(16)
    for batch in batches():
        loss, count = LanguageModeling().loss(model, batch)
        vectors = model.features(batch["input_ids"], segment_ids=batch["segment_ids"]).mean(1)
        rows = 2 * vectors.square().sum() / len(vectors)
        squares = loss_plugins.z_loss(model, batch).total / count
        drift = (vectors - mean).square().sum() / len(vectors)
        model.zero_grad()
        (loss / count + 0.5 * rows + 0.01 * squares + 0.3 * drift).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        mean = 0.5 * mean + 0.5 * vectors.mean(0).detach()
    for actual, expected in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.passes.terms.state_dict()["drift"]["mean"], mean)
    values = {"loss": loss / count, "row_length": rows, "z_loss": squares, "drift": drift}
    metrics = module.train_metrics()
    for name, value in values.items():
        assert metrics[f"train_{name}"] == pytest.approx(value.item(), rel=1e-5)


def test_terms_of_another_weight_only_change_gradients():
    """A term of weight 0 is logged, and the weights are those without it, bit for bit."""
    plain = fit(batches())
    logged = fit(batches(), loss_terms=[{"type": "row_length", "weight": 0, "name": "rows"}])
    for actual, expected in zip(logged.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(actual, expected)
    assert logged.train_metrics()["train_rows"] > 0
    assert plain.passes is None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_pass_for_each_row_matches_one_pass(accumulate):
    """Also the terms of the run, whose counts are their own."""
    options = {"accumulate_grad_batches": accumulate, "loss_terms": TERMS}
    assert_same(fit(batches(), task=Chunked(), **options), fit(batches(), **options))


@pytest.mark.catches("repeated_batches_count")
@pytest.mark.parametrize("task", [LanguageModeling(), Chunked()])
def test_a_batch_that_another_device_has_adds_nothing(task):
    """It only keeps the devices at equal numbers of batches."""
    first, second = batches()[:2]
    repeated = [{**batch, "about": {"repeated": True}} for batch in (second, first)]
    options = {"task": task, "loss_terms": TERMS, "accumulate_grad_batches": 2}
    padded = fit([first, repeated[0], second, repeated[1]], **options)
    assert_same(padded, fit([first, second], **{**options, "accumulate_grad_batches": 1}))


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_accumulated_terms_with_activation_checkpointing(mode):
    """The gradient of a term goes through the recomputed layers before that of the loss."""
    modules = []
    for checkpointing in ("none", mode):
        model = tiny_model()
        set_activation_checkpointing(model, checkpointing)
        modules.append(fit(batches(), model=model, accumulate_grad_batches=2, loss_terms=TERMS))
    assert_same(*modules)


def encoder_batches():
    return [{"input_ids": torch.randint(0, 31, (size, 8))} for size in (5, 4, 3, 6)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_grad_cache_matches_one_pass(accumulate):
    parts = encoder_batches()
    options = {"accumulate_grad_batches": accumulate}
    one, two = (fit(parts, task=task, **options) for task in (Contrastive(), GradCache()))
    assert_same(two, one)


def test_grad_cache_matches_one_pass_in_mixed_precision():
    parts = encoder_batches()
    trainer = {"precision": "bf16-mixed"}
    one, two = (fit(parts, trainer, task=task) for task in (Contrastive(), GradCache()))
    assert two.train_metrics()["train_loss"] == pytest.approx(
        one.train_metrics()["train_loss"], rel=0.05
    )


@pytest.mark.catches("own_step_leaves_out_terms_of_the_run")
def test_terms_of_the_run_join_a_step_that_does_not_ask_for_them():
    class Silent(GradCache):
        name: ClassVar[str] = "silent"

    term = [{"type": "row_length", "weight": 0.5}]
    parts = encoder_batches()
    both = [fit(parts, task=task, loss_terms=term) for task in (Contrastive(), Silent())]
    assert_same(*both)


def test_a_step_without_a_loss_is_an_error():
    class Nothing(LanguageModeling):
        name: ClassVar[str] = "nothing"

        def step(self, context):
            context.backward(context.loss()[0])

    with pytest.raises(ValueError, match="task nothing: its step recorded no loss; call "):
        fit(batches(), task=Nothing())


def test_undeclared_terms_are_an_error():
    class Undeclared(TwoTerms):
        name: ClassVar[str] = "undeclared"
        loss_terms: ClassVar[tuple[str, ...]] = ()

    with pytest.raises(ValueError, match="undeclared: loss_terms does not list the terms of its"):
        fit(batches(), task=Undeclared())
    with pytest.raises(ValueError, match="undeclared: its loss returns the terms rows, squares, w"):
        fit(batches(), task=Undeclared(), loss_terms=TERMS)


def expert_load(batch):
    return torch.bincount(batch["input_ids"].flatten() % 4, minlength=4)


class Experts(torch.nn.Module):
    """Loads of each expert, as a router would count them: here, of each id modulo 4."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, model, batch):
        return LossTerm(stats={"load": expert_load(batch)})

    def after_optimizer_step(self, model, sums):
        assert not torch.is_grad_enabled()
        self.seen.append(sums["load"].tolist())
        model.final_norm.weight.data.add_(1.0)


@pytest.mark.catches("sums_are_those_of_the_last_batch")
def test_hook_after_a_step_gets_the_sums_of_all_batches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._registered["loss_term"], "experts", Experts)
        parts = batches()
        module = fit(parts, accumulate_grad_batches=2, loss_terms=["experts"])
    loads = [expert_load(joined(step)).tolist() for step in (parts[:2], parts[2:])]
    assert module.passes.terms.configured["experts"].component.seen == loads
    assert module.model.final_norm.weight.mean() > 1.5
    assert module.train_metrics().keys() == {"train_loss", "lr", "grad_norm"}  # it has no total


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny_model(seed=5).save_pretrained(folder)
    return str(folder)


@pytest.mark.catches("copies_of_a_task_hold_its_teacher")
def test_teacher_is_frozen_and_no_part_of_the_model(teacher):
    module = fit(batches(), task=Distillation(teacher=teacher), accumulate_grad_batches=2)
    helper = module.task.helpers["teacher"]
    assert not helper.training
    assert not any(parameter.requires_grad for parameter in helper.parameters())
    for actual, expected in zip(helper.parameters(), tiny_model(seed=5).parameters(), strict=True):
        assert torch.equal(actual, expected)
    owned = {id(parameter) for parameter in module.parameters()}
    assert not any(id(parameter) in owned for parameter in helper.parameters())
    assert module.state_dict().keys() == fit(batches()).state_dict().keys()
    assert module.train_metrics()["train_kl"] > 0
    assert "helpers" not in vars(pickle.loads(pickle.dumps(module.task)))


def test_teacher_matches_a_plain_loop(teacher):
    module = fit(batches(), task=Distillation(teacher=teacher))
    model, helper = tiny_model(), tiny_model(seed=5)
    for batch in batches():
        inputs, labels = batch["input_ids"], batch["labels"]
        logits = model(inputs, segment_ids=batch["segment_ids"])
        with torch.no_grad():
            target = helper(inputs, segment_ids=batch["segment_ids"]).softmax(-1)
        entropy = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
        kl = (target * (target.log() - logits.log_softmax(-1))).sum(-1)[labels != -100].mean()
        model.zero_grad()
        (entropy + 0.5 * kl).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    for actual, expected in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.catches("validation_terms_are_of_the_first_batch")
def test_terms_are_validation_metrics_in_eval_mode():
    parts = batches()
    module = MiniFormerLitModule(tiny_model(dropout=0.5), task=TwoTerms(), loss_terms=TERMS[2:])
    loader = DataLoader(parts, batch_size=None)
    trainer = cpu_trainer()
    trainer.validate(module, loader, verbose=False)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    model = tiny_model(dropout=0.5)
    rows, counts, squares, tokens = 0.0, 0, 0.0, 0
    with torch.no_grad():
        for batch in parts:
            total, count = loss_plugins.row_length(model, batch)
            rows, counts = rows + float(total), counts + count
            squares += float(loss_plugins.z_loss(model, batch).total)
            tokens += int((batch["labels"] != -100).sum())
    assert metrics["val_rows"] == pytest.approx(rows / counts, rel=1e-5)
    assert metrics["val_drift"] == pytest.approx(rows / counts, rel=1e-5)  # from a mean of 0
    assert metrics["val_squares"] == pytest.approx(squares / tokens, rel=1e-5)
