"""Runs with sparse training: zeros after each step, in averages and in the saved models."""

import json

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

import miniformer
from miniformer import TrainConfig, UserError
from miniformer.compression.sparse_training.callback import SparseTraining
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.run import train
from tests.kit import VERSE, write_jsonl
from tests.kit.training import cpu_trainer

WORDS = VERSE.split()
METHODS = {
    "rigl": {"sparsity": 0.7, "interval": 3, "drop_share": 0.5},
    "movement": {"method": "movement", "sparsity": 0.7, "interval": 2, "end": 0.5},
}
VARIANTS = {
    "muon": {"ema_decay": 0.8, "accumulate_grad_batches": 2, "average_checkpoints": 2},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.5},
}


class Watch(L.Callback):
    """Masks and zeros after each step."""

    def __init__(self):
        self.masks, self.sparsities, self.wrong = [], [], []

    def on_train_batch_end(self, trainer, module, *args):
        if not module.between_steps:
            return
        sparse = next(x for x in trainer.callbacks if isinstance(x, SparseTraining))
        weights = dict(module.model.named_parameters())
        masks = {f"{x.name}.weight": x.mask for x in sparse.matrices}
        averages = sparse._averages(trainer)
        for name, mask in masks.items():
            tensors = [weights[name].detach()]
            tensors += [x for key, x in averages.items() if key.endswith(f".{name}")]
            self.wrong += [name for x in tensors if x[~mask].any()]
        self.masks.append({name: mask.clone() for name, mask in masks.items()})
        zeros = sum(int((~mask).sum()) for mask in masks.values())
        self.sparsities.append(zeros / sum(mask.numel() for mask in masks.values()))


def config(folder, **changes):
    if not (folder / "train.jsonl").exists():
        write_jsonl(folder / "train.jsonl", [" ".join(WORDS[i % 9 :][:12]) for i in range(24)])
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "train.jsonl"),
        "tokenizer": "byte", "seq_len": 32, "batch_size": 4, "lr": 1e-2, "max_steps": 20,
        "model_config": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32},
        "val_check_interval": 5, "logger": "none", "precision": "float32",
        "work_dir": str(folder), **changes,
    })  # fmt: skip


def num_zeros(path):
    """Zeros of the matrices of the layers of a model directory, and their weights."""
    tensors = load_file(path / "model.safetensors")
    matrices = [x for name, x in tensors.items() if name.startswith("layers.") and x.dim() == 2]
    return sum(int((x == 0).sum()) for x in matrices), sum(x.numel() for x in matrices)


@pytest.mark.catches(
    "masks_are_not_applied_after_a_step", "masks_of_averages_are_old", "rigl_loses_weights",
)  # fmt: skip
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_sparse(method, variant, tmp_path):
    watch = Watch()
    settings = {"sparse_training": METHODS[method], **VARIANTS[variant]}
    result = train(config(tmp_path, **settings), callbacks=[watch])
    assert not watch.wrong
    num_changes = sum(
        any(not torch.equal(before[name], after[name]) for name in before)
        for before, after in zip(watch.masks, watch.masks[1:], strict=False)
    )
    if method == "rigl":
        counts = [{name: int(x.sum()) for name, x in masks.items()} for masks in watch.masks]
        assert all(step == counts[0] for step in counts)
        assert num_changes == 4  # before the steps after 3, 6, 9 and 12
    else:
        assert watch.sparsities == sorted(watch.sparsities)
        assert watch.sparsities[1] == 0.0 < watch.sparsities[4] < 0.65
        assert num_changes >= 8
    for name in ("best", "last"):
        zeros, size = num_zeros(result.folder / name)
        assert zeros >= round(0.7 * size), name
        assert zeros <= 0.72 * size  # averages of new weights may still be zero
    loaded = miniformer.load(result.folder / "best")
    assert not loaded.model.transforms
    assert loaded.generate("the", max_new_tokens=2, seed=0) is not None


class TooFast(L.Callback):
    """A learning rate with which the loss rises from some step on."""

    def __init__(self, start):
        self.start = start

    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step >= self.start:
            module.lr = 3.0


@pytest.mark.catches("sparse_models_are_compared_with_dense_ones")
def test_the_best_model_is_a_sparse_one(tmp_path):
    settings = {"sparse_training": METHODS["movement"], "early_stopping_patience": 0}
    result = train(config(tmp_path, **settings), callbacks=[TooFast(5)])
    zeros, size = num_zeros(result.folder / "best")
    assert zeros >= round(0.7 * size)


@pytest.mark.catches("random_masks_ignore_trained_weights")
def test_trained_weights_of_the_largest_magnitude_stay(tmp_path):
    dense = train(config(tmp_path, experiment_name="dense", max_steps=2))
    watch = Watch()
    changes = {"init_from": str(dense.folder / "last"), "tokenizer": None, "max_steps": 2}
    settings = {"sparsity": 0.6, "distribution": "uniform"}
    train(config(tmp_path, sparse_training=settings, **changes), callbacks=[watch])
    tensors = load_file(dense.folder / "last" / "model.safetensors")
    for name, mask in watch.masks[0].items():
        magnitudes = tensors[name].abs()
        assert abs(int(mask.sum()) - 0.4 * mask.numel()) < 1
        assert magnitudes[mask].min() >= magnitudes[~mask].max(), name


@pytest.mark.catches("loaded_weights_lose_their_masks")
@pytest.mark.parametrize("method", METHODS)
def test_early_stopping_continues_with_the_masks_of_the_best_model(method, tmp_path):
    class Loaded(L.Callback):
        """Masks when early stopping has loaded the best weights."""

        def on_validation_end(self, trainer, module):
            sparse = next(x for x in trainer.callbacks if isinstance(x, SparseTraining))
            if sparse.is_fixed and not masks:
                masks.update({f"{x.name}.weight": x.mask.clone() for x in sparse.matrices})
                best.update(load_file(tmp_path / "language_modeling/best/model.safetensors"))

    watch, masks, best = Watch(), {}, {}
    end = {"rigl": 0.75, "movement": 0.2}[method]
    settings = {**METHODS[method], "end": end, "interval": 1}
    run = config(
        tmp_path, sparse_training=settings, early_stopping_patience=1, max_steps=60, lr=1e-3,
        val_check_interval=4,
    )  # fmt: skip
    result = train(run, callbacks=[TooFast(14), Loaded(), watch])
    assert 14 < len(watch.masks) < 60
    assert masks
    for name, mask in masks.items():
        assert not best[name][~mask].any(), name
        assert torch.equal(watch.masks[-1][name], mask)
    size = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == size - round(0.7 * size)
    assert not watch.wrong
    assert num_zeros(result.folder / "last")[0] >= round(0.7 * size)


def test_a_run_that_ends_before_its_sparsity_warns(tmp_path):
    settings = {**METHODS["movement"], "end": 0.9}

    class End(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.should_stop or trainer.global_step >= 8

    with pytest.warns(UserWarning, match="the run ended with .* % zeros, before the sparsity of 7"):
        train(config(tmp_path, sparse_training=settings), callbacks=[End()])


@pytest.mark.catches("sharded_models_are_trained_sparsely")
def test_a_sharded_model_is_refused():
    trainer = cpu_trainer(max_steps=1)
    module = torch.nn.Linear(2, 2)
    module.trainer = trainer
    SparseTraining().setup(trainer, module, "fit")
    trainer.strategy.__class__ = L.pytorch.strategies.ModelParallelStrategy
    with pytest.raises(UserError, match="sparse_training needs the whole model on each device"):
        SparseTraining().setup(trainer, module, "fit")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_all_devices_have_the_same_masks(method, tmp_path):
    result = train(config(tmp_path, sparse_training=METHODS[method], devices=2))
    checkpoint = latest_checkpoint(result.folder)
    first, second = read_checkpoint_metadata(checkpoint)["callback_states"]
    assert json.loads(json.dumps(second).replace("callbacks.1.", "callbacks.0.")) == first
    tensors = {}
    for path in checkpoint.glob("*.safetensors"):
        tensors |= load_file(path)
    states = {name: x for name, x in tensors.items() if name.startswith("callbacks.0.")}
    assert len(states) >= 12
    for name, value in states.items():
        assert torch.equal(value, tensors[name.replace("callbacks.0.", "callbacks.1.")]), name
    zeros, size = num_zeros(result.folder / "last")
    assert zeros >= round(0.7 * size)
