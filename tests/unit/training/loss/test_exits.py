"""ExitLosses: losses of exits are those of shorter models with the same weights."""

import pytest
import torch

import miniformer
from miniformer import Seq2SeqTransformer
from miniformer.config import ConfigError, UserError
from miniformer.config.early_exit import EarlyExitConfig
from miniformer.model.layer_exits import LayerExits
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.loss_terms import combined_loss
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.training.loss.exits import ExitLosses
from miniformer.training.loss.terms import LossTerms
from tests.kit import tiny_model
from tests.kit.training import labeled_batches

CONFIG = EarlyExitConfig(scale=0.5, max_dropout=0.0)
IDS = torch.arange(12).view(3, 4)
CASES = {
    "language_modeling": (
        LanguageModeling(),
        {},
        lambda: labeled_batches([(4, 5)])[0],
    ),
    "classification": (
        Classification(classes=["a", "b", "c"]),
        {"causal": False, "output_dim": 3, "pooling": "mean"},
        lambda: {"inputs": IDS, "labels": torch.tensor([0, 2, 1])},
    ),
    "seq2seq": (
        Seq2Seq(),
        {"model": Seq2SeqTransformer, "causal": False},
        lambda: {"source": IDS, "target": IDS + 9, "labels": IDS + 10},
    ),
}


def models(options, count):
    """A model, and one with its first layers only."""
    sizes = {"n_layers": 3}, {"n_layers": count}
    if options.get("model") is Seq2SeqTransformer:
        sizes = ({"n_layers": 2, "n_decoder_layers": n} for n in (3, count))
    model, shorter = (tiny_model(**options, **size) for size in sizes)
    weights = model.state_dict()
    shorter.load_state_dict({name: weights[name] for name in shorter.state_dict()})
    return model, shorter


@pytest.mark.catches("exits_skip_the_final_norm", "exits_are_one_layer_late")
@pytest.mark.parametrize("case", CASES)
def test_loss_of_an_exit_is_that_of_a_shorter_model(case):
    task, options, make_batch = CASES[case]
    batch = make_batch()
    for count in (1, 2):
        model, shorter = models(options, count)
        result, terms = ExitLosses(model, task, CONFIG).loss(task, model, batch)
        assert [*terms] == ["exit_1", "exit_2"]
        torch.testing.assert_close(result[0], task.loss(model, batch)[0])
        torch.testing.assert_close(terms[f"exit_{count}"].total, task.loss(shorter, batch)[0])
        assert all(stack.exits is None for stack in model.modules() if hasattr(stack, "exits"))


@pytest.mark.catches("exit_losses_are_only_logged")
def test_gradients_are_those_of_the_weighted_sum():
    """The reference applies the norm and the head to the hidden states of a pass."""
    task, _, make_batch = CASES["language_modeling"]
    model, batch = tiny_model(n_layers=3), make_batch()
    terms = LossTerms(task, [], ExitLosses(model, task, CONFIG))
    loss, count = combined_loss(terms.loss(task, model, batch))
    gradients = torch.autograd.grad(loss / count, [*model.parameters()])
    hidden = model(
        batch["input_ids"], segment_ids=batch["segment_ids"], return_hidden=True
    ).hidden_states
    labels, total = batch["labels"], 0.0
    last = 3 + 0.5 * 3
    for state, weight in ((hidden[1], 0.5 / last), (hidden[2], 1.5 / last), (None, 1.0)):
        features = hidden[-1] if state is None else model.final_norm(state)
        logits = model.logits(features).flatten(0, 1)
        total = total + weight * torch.nn.functional.cross_entropy(logits, labels.flatten())
    expected = torch.autograd.grad(total, [*model.parameters()])
    for actual, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-6)


def test_replays_draw_no_random_numbers_and_share_the_dropout_of_the_pass():
    task, _, make_batch = CASES["language_modeling"]
    model, batch = tiny_model(n_layers=2, dropout=0.3).train(), make_batch()
    exits, states = ExitLosses(model, task, CONFIG), []
    for compute in (task.loss, lambda *args: exits.loss(task, *args)[0]):
        torch.manual_seed(0)
        states.append((compute(model, batch)[0], torch.get_rng_state()))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.catches("exit_weights_fall_with_depth")
def test_weights_and_dropout_rise_with_depth():
    config = EarlyExitConfig(scale=1.0, max_dropout=0.2)
    assert config.weights(4) == pytest.approx([1 / 10, 3 / 10, 6 / 10])
    assert config.dropout_rates(3) == pytest.approx([0.0, 0.2 * (2**0.5 - 1), 0.2])
    assert config.dropout_rates(1) == [0.0]


@pytest.mark.catches("layers_are_skipped_in_evaluation")
def test_rows_skip_layers_in_training_only():
    exits = LayerExits([0.0, 0.25])
    assert exits.start_pass() is None
    x = torch.zeros(4000, 2, 3)
    torch.manual_seed(0)
    assert exits.after_layer(0, x, x + 1, training=True).min() == 1
    skipped = exits.after_layer(1, x, x + 1, training=True)[:, 0, 0] == 0
    assert 0.22 < skipped.float().mean() < 0.28
    assert exits.after_layer(1, x, x + 1, training=False).min() == 1


def test_a_run_logs_the_loss_of_each_exit(tmp_path):
    texts = [{"text": f"{n} and {n} is {2 * n}"} for n in range(40)]
    settings = {"max_steps": 2, "val_check_interval": 2, "logger": "none", "tokenizer": "char"}
    settings |= {"model_config": {"d_model": 16, "n_heads": 2, "n_layers": 3}, "val_share": 0.2}
    result = miniformer.train(
        texts, early_exit={"scale": 1.0}, work_dir=str(tmp_path), quiet=True, **settings
    )
    exits = {name for name in result.metrics if "exit_" in name}
    assert exits == {"val_exit_1", "val_exit_2"}
    assert result.metrics["val_exit_2"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skale": 1.0}, "early_exit: unknown field 'skale'"),
        ({"scale": 0.0}, "early_exit: scale must be above 0"),
        ({"max_dropout": 1.0}, "early_exit: max_dropout must be at most 0.9"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ConfigError) as error:
        miniformer.TrainConfig(train_path="t.jsonl", early_exit=settings)
    assert message in str(error.value)


def test_models_and_tasks_without_exits_are_errors():
    task = LanguageModeling()
    with pytest.raises(UserError, match="the model has 1 layers; exits need at least 2"):
        ExitLosses(tiny_model(n_layers=1), task, CONFIG)
    with pytest.raises(UserError, match="a Linear has no stack of layers"):
        ExitLosses(torch.nn.Linear(1, 1), task, CONFIG)

    class OwnStep(LanguageModeling):
        def step(self, context):
            return None

    with pytest.raises(UserError, match="has a step of its own"):
        ExitLosses(tiny_model(n_layers=2), OwnStep(), CONFIG)
