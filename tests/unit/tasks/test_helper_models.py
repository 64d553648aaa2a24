"""Helper models of a task: built once, frozen, moved with the run, and left out of copies."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from miniformer.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Distilled(Task):
    name = "distilled"

    def helper_models(self):
        return {"teacher": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))}


def test_helpers_are_frozen_and_built_once():
    task, state = Distilled(), torch.random.get_rng_state()
    teacher = task.helpers["teacher"]
    assert task.helpers["teacher"] is teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("first", ["build", "move"])
def test_helpers_are_on_the_device_of_the_run(first):
    task = Distilled()
    if first == "build":
        assert task.helpers
    task.move_helpers("meta")
    assert {parameter.device.type for parameter in task.helpers["teacher"].parameters()} == {"meta"}


@pytest.mark.catches("copies_of_a_task_hold_its_teacher")
def test_copies_build_their_own_helpers():
    task = Distilled()
    teacher = task.helpers["teacher"]
    copied = pickle.loads(pickle.dumps(task))
    assert copied == task
    assert "helpers" not in vars(copied)
    assert copied.with_helpers_of(task).helpers["teacher"] is teacher
