"""Movement pruning compared with scores that are parameters, with straight-through gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from miniformer.compression.sparse_training.callback import SparseTraining

STEPS, RATE, SPARSITY = 40, 0.05, 0.75
SETTINGS = {"method": "movement", "sparsity": SPARSITY, "interval": 1, "start": 0.1, "end": 0.6}


class Layers(nn.Module):
    """Two matrices."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)])
        for index, layer in enumerate(self.layers):
            dice = torch.Generator().manual_seed(index)
            layer.weight.data = torch.randn(layer.weight.shape, generator=dice).double()

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class LargestScores(torch.autograd.Function):
    """The mask of the largest scores, with the gradient of the scores themselves."""

    @staticmethod
    def forward(ctx, scores, count):
        values = scores.flatten().tolist()
        order = sorted(range(len(values)), key=lambda i: -values[i])[:count]
        return torch.tensor([float(i in order) for i in range(len(values))]).view_as(scores)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def data(step):
    dice = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(16, 6, generator=dice).double()
    return x, torch.tanh(x[:, :4] * 2)


def reference():
    """Weights and masks of Sanh et al. 2020: weights and scores learn by gradient descent."""
    weights = [layer.weight for layer in Layers().layers]
    scores = [torch.zeros_like(x).requires_grad_() for x in weights]
    counts = [x.numel() for x in weights]
    for step in range(STEPS):
        x, y = data(step)
        masks = [LargestScores.apply(s, n).double() for s, n in zip(scores, counts, strict=True)]
        for weight, mask in zip(weights, masks, strict=True):
            x = torch.tanh(x @ (weight * mask).T)
        gradients = torch.autograd.grad((x - y).square().sum(), [*weights, *scores])
        with torch.no_grad():
            rates = [RATE] * 2 + [1.0] * 2
            for tensor, gradient, rate in zip([*weights, *scores], gradients, rates, strict=True):
                tensor -= rate * gradient
        remaining = max(0.0, (0.6 - (step + 1) / STEPS) / 0.5)
        share = SPARSITY * (1 - min(1.0, remaining) ** 3)
        counts = [x.numel() - round(share * x.numel()) for x in weights]
    masks = [LargestScores.apply(s, n) for s, n in zip(scores, counts, strict=True)]
    return [w * m for w, m in zip(weights, masks, strict=True)], masks


@pytest.mark.catches(
    "scores_have_the_wrong_sign", "removed_weights_are_lost", "masks_are_not_applied_after_a_step"
)
def test_weights_are_those_of_learned_scores():
    model = Layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    trainer = SimpleNamespace(optimizers=[optimizer], callbacks=[], loggers=[], global_step=0)
    module = SimpleNamespace(model=model, trainer=trainer, progress=0.0, between_steps=True)
    callback = SparseTraining(**SETTINGS)
    callback.on_train_start(trainer, module)
    num_returned = 0
    for step in range(STEPS):
        x, y = data(step)
        (model(x) - y).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.global_step, module.progress = step + 1, (step + 1) / STEPS
        before = [matrix.mask for matrix in callback.matrices]
        callback.on_train_batch_end(trainer, module)
        pairs = zip(before, callback.matrices, strict=True)
        num_returned += sum(int((matrix.mask & ~mask).sum()) for mask, matrix in pairs)
    assert num_returned > 3
    for layer, weight, mask in zip(model.layers, *reference(), strict=True):
        assert int((layer.weight != 0).sum()) == round((1 - SPARSITY) * weight.numel())
        assert torch.equal(layer.weight != 0, mask.bool())
        torch.testing.assert_close(layer.weight, weight, rtol=1e-9, atol=1e-12)
