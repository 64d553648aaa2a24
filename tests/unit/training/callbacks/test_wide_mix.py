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
from miniformer.training.callbacks.wide_mix import fit_mix
from miniformer.training.run import train

WORDS = ["sun", "rain", "snow", "hail", "fog", "wind", "calm", "storm"]


def a_module(mix):
    config = TransformerConfig(
        vocab_size=9,
        d_model=8,
        n_heads=2,
        n_layers=1,
        output_dim=3,
        wide_head=[{"type": "ngrams", "size": 4}],
    )
    model = Transformer(config)
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
