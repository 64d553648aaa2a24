"""Zeros stay zero in training, whatever the optimizer, and in a resumed run."""

import copy

import pytest
import torch

import miniformer
from miniformer import UserError
from miniformer.compression.pruning.sparsity import sparse_model
from miniformer.model.matrices import weight_matrices
from tests.unit.compression.conftest import texts

RECORDS = [{"text": text} for text in texts(80, seed=3)]
RUN = {"max_steps": 6, "batch_size": 4, "lr": 1e-2, "logger": "none", "quiet": True}


@pytest.fixture(scope="module")
def sparse(trained, tmp_path_factory):
    """Directory of a model with zeros, and the masks of its zeros by name."""
    pipeline = copy.copy(trained)
    pipeline.model = sparse_model(trained.model, 0.5, "magnitude")
    directory = tmp_path_factory.mktemp("sparse") / "model"
    pipeline.save(directory)
    return directory, zeros_of(pipeline.model)


def zeros_of(model):
    return {x.name: x.weight.detach() == 0 for x in weight_matrices(model) if x.layer is not None}


def train(directory, **options):
    start = miniformer.load(directory)
    options = {**{k: v for k, v in RUN.items() if k not in ("logger", "quiet")}, **options}
    return miniformer.train(RECORDS, in_memory=True, start=start, **options).pipeline.model


@pytest.mark.catches("zeros_are_not_restored_after_a_step", "masks_are_of_the_other_weights")
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_zeros_are_the_same_after_training(optimizer, sparse):
    directory, zeros = sparse
    before = miniformer.load(directory).model
    model = train(directory, callbacks=["weight_masks"], optimizer=optimizer, ema_decay=0.5)
    after = zeros_of(model)
    assert all(torch.equal(after[name], zeros[name]) for name in zeros)
    for name in zeros:  # the others are trained
        weights = [x.get_submodule(name).weight for x in (before, model)]
        assert float((weights[0] != weights[1])[~zeros[name]].float().mean()) > 0.9
    if optimizer == "muon":  # without the callback they are not
        assert not any(x.any() for x in zeros_of(train(directory, optimizer=optimizer)).values())


@pytest.mark.catches("masked_gradients_are_counted")
def test_masked_gradients_are_zero(sparse):
    directory, zeros = sparse

    class Gradients(miniformer_callback()):
        """Takes the gradients of each step."""

        def on_train_start(self, trainer, module):
            self.norms = []

            def before(optimizer, *_):
                for name, x in module.model.named_parameters():
                    if (zero := zeros.get(name.removesuffix(".weight"))) is not None:
                        self.norms.append(float(x.grad[zero].abs().sum()))

            trainer.optimizers[0].register_step_pre_hook(before)

    gradients = Gradients()
    train(directory, callbacks=["weight_masks", gradients], max_steps=2)
    assert len(gradients.norms) == 2 * len(zeros)
    assert not any(gradients.norms)


def miniformer_callback():
    import lightning

    return lightning.Callback


def test_named_matrices_alone(sparse):
    directory, zeros = sparse
    masks = {"type": "weight_masks", "matrices": ["q_proj", "layers.1.feed_forward.up_proj"]}
    after = zeros_of(train(directory, callbacks=[masks]))
    for name, zero in zeros.items():
        is_named = name.endswith("q_proj") or name == "layers.1.feed_forward.up_proj"
        assert torch.equal(after[name], zero) == is_named


@pytest.mark.catches("zeros_are_not_restored_after_a_step")
def test_a_resumed_run_has_the_same_zeros(sparse, tmp_path):
    directory, zeros = sparse
    options = {
        **RUN, "work_dir": str(tmp_path), "init_from": str(directory), "val_share": 0.2,
        "callbacks": ["weight_masks"], "checkpoint_interval": 3,
    }  # fmt: skip
    straight = miniformer.train(RECORDS, experiment_name="straight", **options)
    first = miniformer.train(RECORDS, experiment_name="part", **{**options, "max_steps": 3})
    resumed = miniformer.train(RECORDS, resume=str(first.folder), max_steps=6, quiet=True)
    models = [miniformer.load(x.folder / "last").model for x in (straight, resumed)]
    for model in models:
        assert all(torch.equal(x, zeros[name]) for name, x in zeros_of(model).items())
    assert not models[0].transforms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrices": ["q_prj"]}, "'q_prj' is no linear layer; those are down_proj, k_proj"),
        ({"matrices": ["embedding"]}, "'embedding' is no linear layer"),
    ],
)
def test_bad_names(options, message, sparse):
    with pytest.raises(UserError, match=message):
        train(sparse[0], callbacks=[{"type": "weight_masks", **options}])


def test_a_model_without_zeros(trained, tmp_path):
    trained.save(tmp_path / "dense")
    with pytest.raises(UserError, match="no weight is zero; prune the model first"):
        train(tmp_path / "dense", callbacks=["weight_masks"])
