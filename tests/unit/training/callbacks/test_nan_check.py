"""The NaN check names the step and the batch of a NaN or infinite loss."""

import json
import math

import pytest
import torch

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.nan_check import NaNCheck, NonFiniteLossError
from miniformer.training.run import train
from tests.kit import VERSE


@pytest.mark.catches("infinite_loss_is_learned")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_check_reports_step_and_batch(value):
    check = NaNCheck()
    for step in range(1, 5):
        for micro in range(2):
            broken = (step, micro) == (3, 1)
            check.record(torch.tensor(value if broken else 1.0), {"batch": 10 * step + micro})
        if step == 3:
            with pytest.raises(
                NonFiniteLossError, match=f"the training loss is {value} at step 3"
            ) as error:
                check.check(step)
            assert error.value.batch_positions == [{"batch": 31}]
            break
        check.check(step)


class OnGpu(torch.Tensor):
    """A CPU tensor whose device is a GPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize("now", [False, True])
def test_nan_check_on_gpu_every_fifty_steps(now):
    """The host does not wait for the device at each step; the first bad step is reported later."""
    check = NaNCheck()
    for step in range(1, 26):
        for micro in range(2):
            loss = torch.tensor(math.nan if step in (3, 4) else 1.0)
            check.record(loss.as_subclass(OnGpu), {"batch": 10 * step + micro})
        if step == 25 or (now and step == 7):
            with pytest.raises(
                NonFiniteLossError, match="the training loss is nan at step 3"
            ) as error:
                check.check(step, now=now)
            assert error.value.batch_positions == [{"batch": 30}, {"batch": 31}]
            break
        check.check(step)


@pytest.mark.catches("records_of_an_infinite_loss_are_not_named")
def test_nan_check_reports_records_and_last_checkpoint(tmp_path, monkeypatch):
    """One record in sixteen breaks the loss; its line and the previous checkpoint are named."""
    from miniformer.tasks.classification import Classification

    lines = [{"input": "x" * 9 if i == 11 else VERSE[i : i + 4], "label": i % 2} for i in range(16)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    real = Classification.loss

    def loss(self, model, batch):
        total, count = real(self, model, batch)
        return (total * math.nan if batch["inputs"].shape[1] > 8 else total), count

    monkeypatch.setattr(Classification, "loss", loss)
    config = TrainConfig(
        train_path=str(path), task="classification", tokenizer="byte", batch_size=1, max_steps=40,
        model_config={"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16},
        work_dir=str(tmp_path), logger="none", checkpoint_interval=1,
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        train(config)
    message = str(error.value)
    assert "the training loss is nan at step" in message
    assert f"records of that batch: {path}:12;" in message or f"{path}:12" in message
    step = int(message.split("at step ")[1].split(";")[0])
    if step > 1:
        assert f"step-{step - 1:08d}-0" in message
        assert "resume='" in message
