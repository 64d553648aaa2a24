"""LossTerms: terms of `TrainConfig.loss_terms`, their names, options and states."""

import pytest
import torch

from miniformer import TrainConfig
from miniformer.config import ConfigError, UserError
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.loss_terms import LossTerm, combined_loss
from miniformer.training.loss.terms import LossTerms
from tests.kit import loss_plugins, tiny_model
from tests.kit.loss_plugins import Distillation
from tests.kit.training import labeled_batches


@pytest.fixture(autouse=True, scope="module")
def registered():
    with loss_plugins.registered():
        yield


class Trained(torch.nn.Linear):
    """A term with a weight."""

    def __init__(self):
        super().__init__(2, 2)


def wrong(model, batch):
    """Returns a sum without a count."""
    return torch.zeros(())


HERE = "tests.unit.training.loss.test_terms"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"type": "drift", "weight": "a"}], "loss_terms[0]: weight must be a number, not 'a'"),
        ([{"type": "drift", "weight": True}], "loss_terms[0]: weight must be a number, not True"),
        ([{"type": "drift", "weight": float("nan")}], "weight must be a number, not nan"),
        ([{"type": "drift", "name": 3}], "loss_terms[0]: name must be a text, not 3"),
        ([{"type": "drift", "dekay": 1}], "drift has no option 'dekay' (did you mean 'decay'?)"),
        ([{"type": "row_length", "skale": 1}], "row_length has no option 'skale' (did you mean"),
        (
            ["drift", {"type": "drift", "decay": 0.1}],
            "loss_terms[1]: the name drift is that of a metric of another term; add a name, such "
            'as "name": "drift_2"',
        ),
        (
            [{"type": "drift", "name": "perplexity"}],
            "the name perplexity is that of a metric of the task language_modeling; add a name",
        ),
        ([f"{HERE}:Trained"], "has trainable parameters, which the optimizer does not update"),
        ([f"{HERE}:HERE"], f"loss_terms[0]: {HERE}:HERE is no function of model and batch"),
        ([f"{HERE}:Missing"], f"loss_term '{HERE}:Missing' cannot be imported: AttributeError"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(UserError) as error:
        LossTerms(LanguageModeling(), settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["drif"], "loss_terms[0]: unknown loss term 'drif' (did you mean 'drift'?)"),
        ([{"weight": 1}], "loss_terms[0] must be a name, or an object with a name as type"),
    ],
)
def test_invalid_names_in_a_config(settings, message):
    with pytest.raises(ConfigError) as error:
        TrainConfig(train_path="x", loss_terms=settings)
    assert message in str(error.value)


def test_a_term_of_another_type_is_an_error():
    terms = LossTerms(LanguageModeling(), [f"{HERE}:wrong"])
    with pytest.raises(TypeError, match="loss term wrong: returns a Tensor, not a LossTerm or a"):
        terms.of_batch(tiny_model(), {})


def test_names_and_weights():
    settings = ["drift", {"type": f"{HERE}:wrong", "weight": 2}, {"type": "drift", "name": "slow"}]
    terms = LossTerms(Distillation(), settings)
    assert terms.names == ("kl", "drift", "wrong", "slow")
    assert [term.weight for term in terms.configured.values()] == [1.0, 2.0, 1.0]


def test_weights_of_setting_and_term_multiply():
    settings = [{"type": "z_loss", "weight": 0.5}]
    (batch,) = labeled_batches([(2, 4)])
    model = tiny_model()
    (term,) = LossTerms(LanguageModeling(), settings).of_batch(model, batch).values()
    assert term.weight == 0.5
    assert term.total == loss_plugins.z_loss(model, batch).total


def test_state_of_terms_with_one():
    settings = ["row_length", "drift", {"type": "drift", "name": "slow"}]
    first, second = (LossTerms(LanguageModeling(), settings) for _ in range(2))
    for value, name in enumerate(("drift", "slow")):
        first.configured[name].component.mean.fill_(value + 1.0)
    assert first.state_dict().keys() == {"drift", "slow"}
    second.load_state_dict(first.state_dict())
    assert second.configured["slow"].component.mean.tolist() == [2.0] * 16


def test_modes_follow_the_model():
    terms = LossTerms(LanguageModeling(), ["drift"])
    (batch,) = labeled_batches([(2, 4)])
    for mode in (True, False):
        terms.of_batch(tiny_model().train(mode), batch)
        assert terms.configured["drift"].component.training is mode


@pytest.mark.parametrize("count", [None, 4.0, torch.tensor(4.0)])
def test_combined_loss_of_one_batch(count):
    loss, own = torch.tensor(6.0), torch.tensor(8.0)
    terms = {"a": LossTerm(own, count, 0.5), "b": LossTerm(own, weight=0), "c": LossTerm()}
    total, divisor = combined_loss((loss, torch.tensor(3.0), terms))
    expected = 6 / 3 + 0.5 * 8 / (3 if count is None else 4)
    assert float(total / divisor) == pytest.approx(expected)
    assert combined_loss((loss, divisor)) == (loss, divisor)
