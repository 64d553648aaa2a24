"""Settings of the optimization of a run: conflicts with their fixes, and its options."""

import inspect

import pytest

from miniformer import MiniFormerLitModule
from miniformer.config import ConfigError
from miniformer.config.train_settings import OptimizationSettings

AVERAGING = {"optimizer": "schedulefree", "scheduler": "none"}


@pytest.mark.catches("conflicts_of_an_averaging_optimizer_pass")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": 1, "warmup_ratio": 0.1}, "warmup_steps and warmup_ratio both set"),
        ({"scheduler": "onecycle", "warmup_ratio": 0.1}, "warmup_ratio has no effect with"),
        ({"optimizer": "schedulefree"}, "schedulefree has no schedule; set scheduler=none"),
        ({**AVERAGING, "ema_decay": 0.9}, "ema_decay has no effect with schedulefree"),
        ({**AVERAGING, "sparse_training": {}}, "an optimizer whose state has no weights"),
        ({"optimizer_config": {"layer_lr_decay": 0.9}}, "layer_lr_decay is a separate setting"),
        ({"early_exit": {"scael": 1}}, "early_exit: unknown field 'scael'"),
    ],
)
def test_conflicts_are_refused(values, message):
    with pytest.raises(ConfigError) as caught:
        OptimizationSettings(**values)
    assert message in str(caught.value)


def test_module_options_are_arguments_of_the_module():
    options = OptimizationSettings().module_options()
    assert options.keys() <= inspect.signature(MiniFormerLitModule).parameters.keys()
    assert not {"seed", "ema_decay"} & options.keys()
