"""Internals of Lightning that the package sets: all in one file, there in each version allowed."""

import ast
import functools
import re
import tomllib

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from miniformer.training import lightning_internals
from tests.kit import ROOT

FILE = "src/miniformer/training/lightning_internals.py"
# Attributes of a Trainer within `fit`, with the values that are read or set.
INTERNALS = {
    "val_check_batch": "batches between validations",
    "validating": "a property that is set around a validation",
    "training": "a property that is set around a validation",
    "fit_loop.max_batches": "batches after which an epoch ends",
    "fit_loop._combined_loader.limits": "the same, of each loader",
    "fit_loop.epoch_loop.val_loop.run": "runs a validation",
    "fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.ready": "optimizer steps",
    "fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed": "the same",
}


class Module(L.LightningModule):
    """Takes a step in each batch, and records the steps of validations."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch, index):
        self.manual_backward(self.weight * 0.0)
        self.optimizers().step()

    def validation_step(self, batch, index):
        self.validated.append(self.trainer.global_step)


class Steps(L.Callback):
    """Sets the step to 10, validates there, and requests a validation after step 12."""

    def on_train_start(self, trainer, module):
        missing = [name for name in INTERNALS if not has(trainer, name)]
        assert not missing, (
            f"Lightning {L.__version__} has no Trainer.{missing[0]}: change {FILE}, "
            "or the bound on Lightning in pyproject.toml"
        )
        self.call(lightning_internals.set_global_step, trainer, 10)
        self.call(lightning_internals.run_validation, trainer)
        assert trainer.training
        assert trainer.state.fn == "fit"

    def on_train_batch_end(self, trainer, module, *args):
        due = trainer.global_step == 12
        self.call(lightning_internals.request_validation, trainer, due)

    def call(self, function, *args):
        try:
            function(*args)
        except (AttributeError, TypeError) as error:
            pytest.fail(
                f"{FILE}: {function.__name__} does not fit Lightning {L.__version__} ({error}): "
                "change it, or the bound on Lightning in pyproject.toml",
                pytrace=False,
            )


def has(trainer, path):
    try:
        functools.reduce(getattr, path.split("."), trainer)
    except AttributeError:
        return False
    return True


@pytest.mark.catches("an_internal_of_lightning_is_gone", "a_resumed_trainer_counts_from_0")
def test_internals_of_lightning_do_what_they_are_used_for():
    module = Module()
    data = DataLoader(torch.zeros(4, 1))
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, check_val_every_n_epoch=None,
        val_check_interval=1, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Steps()],
    )  # fmt: skip
    trainer.fit(module, data, DataLoader(torch.zeros(1, 1)))
    assert trainer.global_step == 14
    assert module.validated == [10, 12]


def test_internals_of_lightning_are_used_in_one_file_only():
    private = {name for path in INTERNALS for name in path.split(".")[:-1]} | {"val_check_batch"}
    private -= {"total"}
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in private
    }
    assert users == {FILE}


def test_lightning_has_an_upper_bound_which_the_tested_version_is_below():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bounds,) = (line for line in project["dependencies"] if line.startswith("lightning"))
    floor, ceiling = re.fullmatch(r"lightning>=([\d.]+),<([\d.]+)", bounds).groups()
    pinned = re.search(r"^lightning==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    def numbers(version):
        return [int(number) for number in version.split(".")]

    assert numbers(floor) <= numbers(pinned[1]) < numbers(ceiling)
