"""The number of steps of a run."""

import types

import pytest

from miniformer.training.setup.limits import max_total_steps


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
