"""Weights of the Transformer and its wide head, against SciPy and a second evaluation."""

import json
import random
import types

import numpy as np
import pytest
import scipy.optimize
import torch

import miniformer
from miniformer import TrainConfig, Transformer, TransformerConfig
from miniformer.tasks.classification import Classification
from miniformer.tasks.ordinal_regression import OrdinalRegression, class_log_probs
from miniformer.training.callbacks.wide_mix import fit_mix
from miniformer.training.run import train

WORDS = ["sun", "rain", "snow", "hail", "fog", "wind", "calm", "storm"]
SHAPE = {"vocab_size": 9, "d_model": 8, "n_heads": 2, "n_layers": 1,
         "wide_head": [{"type": "ngrams", "size": 4}]}  # fmt: skip


def a_module(mix):
    model = Transformer(TransformerConfig(**SHAPE, output_dim=3))
    model.wide_head.mix.copy_(torch.tensor(mix))
    return types.SimpleNamespace(model=model, task=Classification(classes=["a", "b", "c"]))


def a_validation(helpful):
    """Outputs of 200 examples; of the Transformer, the wide head, both or none helpful."""
    labels = torch.randint(0, 3, (200,))
    truth = torch.nn.functional.one_hot(labels, 3).float()
    outputs = {name: torch.randn(200, 3) + 2 * truth * (name in helpful)
               for name in ("deep", "wide")}  # fmt: skip
    return {**outputs, "labels": labels, "inputs": torch.zeros(200, 1, dtype=torch.long)}


@pytest.mark.catches("weights_of_the_wide_head_may_be_negative")
@pytest.mark.parametrize("helpful", [("deep",), ("wide",), ("deep", "wide")])
def test_weights_have_the_lowest_penalized_loss(helpful):
    prior = np.array([0.5, 0.5])
    batch = a_validation(helpful)
    mix = fit_mix(a_module(prior.tolist()), batch).double().numpy()
    both = np.stack([batch["deep"].numpy(), batch["wide"].numpy()]).astype(float)

    def objective(weights):
        logits = np.einsum("k,knc->nc", weights, both)
        logits -= logits.max(1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        nll = -log_probs[np.arange(200), batch["labels"].numpy()].mean()
        return nll + 4 / 200 * ((weights - prior) ** 2).sum()

    best = scipy.optimize.minimize(objective, prior, bounds=[(0, None)] * 2)
    assert (mix >= 0).all()
    assert objective(mix) == pytest.approx(best.fun, abs=1e-3)


@pytest.mark.catches("ordered_outputs_may_vanish")
def test_weights_of_ordered_outputs_are_above_zero():
    """Both scores are misleading, and labels of all classes have a probability."""
    config = TransformerConfig(**SHAPE, output_dim=2, ordered_outputs=True)
    task = OrdinalRegression(classes=["a", "b", "c"])
    module = types.SimpleNamespace(model=Transformer(config), task=task)
    labels = torch.arange(3).repeat(20)
    outputs = -4.0 * (labels - 1.0)[:, None] + torch.tensor([1.0, -1.0])
    batch = {"labels": labels, "inputs": torch.zeros(60, 1, dtype=torch.long)}
    for prior in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]):
        module.model.wide_head.mix.copy_(torch.tensor(prior))
        mix = fit_mix(module, {**batch, "deep": outputs, "wide": outputs})
        loss = -class_log_probs(mix.sum() * outputs)[torch.arange(60), labels].mean()
        before = -class_log_probs(outputs)[torch.arange(60), labels].mean()
        assert (mix > 0).all()
        assert loss < before / 2


@pytest.mark.catches("weights_of_the_wide_head_change_after_a_validation")
def test_best_model_has_the_metrics_of_its_validation(tmp_path):
    choose = random.Random(0)
    records = []
    for _ in range(60):
        text = " ".join(choose.choices(WORDS, k=5))
        records.append({"input": text, "label": int("rain" in text) ^ (choose.random() < 0.2)})
    for name, part in (("train", records[:40]), ("val", records[40:])):
        lines = "".join(json.dumps(record) + "\n" for record in part)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    result = train(
        TrainConfig(
            train_path=str(tmp_path / "train.jsonl"),
            val_path=str(tmp_path / "val.jsonl"),
            task="classification",
            max_epochs=4,
            val_check_interval=3,
            precision="float32",
            work_dir=str(tmp_path / "runs"),
            logger="none",
            checkpoint_metric="loss",
            model_config={"d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 16},
        )
    )
    pipeline = miniformer.load(result.model)
    # Not the first validation is the best.
    assert pipeline.model.wide_head.mix.tolist() != [0.0, 1.0]
    encoded = pipeline.task.encode(records[40:], pipeline.tokenizer, 16)
    outputs = [pipeline.model.classify(torch.tensor([example["inputs"].astype(int).tolist()]))
               for example in encoded]  # fmt: skip
    labels = torch.tensor([record["label"] for record in records[40:]])
    loss = torch.nn.functional.cross_entropy(torch.cat(outputs), labels)
    assert float(loss.detach()) == pytest.approx(result.metrics["val_loss"], abs=1e-5)
