"""Settings of sparse training: schedules in closed form, and what is refused."""

import pytest

from miniformer import TrainConfig, UserError
from miniformer.config.sparse_training import SparseTrainingConfig


@pytest.mark.catches("rigl_schedule_is_off_by_one", "movement_schedule_is_linear")
def test_schedules_have_the_values_of_their_papers():
    rigl = SparseTrainingConfig(drop_share=0.4, end=0.8)
    exchanged = [rigl.exchanged_share(0.8 * x) for x in (0, 1 / 3, 1 / 2, 2 / 3, 1)]
    assert exchanged == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    movement = SparseTrainingConfig(method="movement", start=0.2, end=0.7)
    reached = [movement.removed_share(x) for x in (0.0, 0.2, 0.45, 0.6, 0.7, 1.0)]
    assert reached == pytest.approx([0.0, 0.0, 1 - 0.5**3, 1 - 0.2**3, 1.0, 1.0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metod": "rigl"}, "sparse_training: unknown field 'metod'"),
        ({"method": "set"}, "sparse_training: method must be"),
        ({"sparsity": 1.0}, "sparse_training: sparsity must be at most 0.99"),
        ({"sparsity": 0.0}, "sparse_training: sparsity must be above 0"),
        ({"start": 0.2}, "sparse_training: start is for movement, not for rigl; leave it out"),
        ({"method": "movement", "initial": "random"}, "initial is for rigl, not for movement"),
        ({"method": "movement", "start": 0.8}, "start=0.8 must be below end=0.7"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(train_path="t.jsonl", sparse_training=settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "schedulefree", "scheduler": "none"}, "in place of schedulefree"),
        ({"strategy": "fsdp2", "devices": 2}, "strategy=fsdp2 divides it; set strategy=ddp"),
        ({"adapter": "lora", "init_from": "m"}, "the matrices that an adapter freezes"),
    ],
)
def test_what_does_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(train_path="t.jsonl", sparse_training={}, **changes)


def test_trained_weights_choose_the_first_masks_of_rigl():
    def first(**changes):
        return TrainConfig(train_path="t.jsonl", **changes).all_callbacks()

    assert first() == []
    random = {"type": "sparse_training", "initial": "random"}
    assert first(sparse_training={}, callbacks=["a:B"]) == [random, "a:B"]
    assert first(sparse_training={}, init_from="m")[0]["initial"] == "magnitude"
    given = {"initial": "random", "method": "rigl"}
    assert first(sparse_training=given, init_from="m") == [{"type": "sparse_training", **given}]
    movement = {"method": "movement"}
    assert first(sparse_training=movement) == [{"type": "sparse_training", **movement}]
