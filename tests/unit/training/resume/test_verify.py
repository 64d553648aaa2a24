"""Digests of weights."""

import pytest
import torch

from miniformer.training.resume.verify import weights_digest


@pytest.mark.catches("digest_ignores_the_weights")
def test_weights_digest_covers_every_bit_and_name():
    weights = {"a": torch.arange(3.0), "b": torch.zeros(2)}
    one_bit = torch.tensor([0.0, 1.0, torch.tensor(2.0).nextafter(torch.tensor(3.0))])
    other_weights = [
        {**weights, "a": one_bit},
        {**weights, "b": -weights["b"]},
        {"a": weights["a"], "c": weights["b"]},
    ]
    digests = [weights_digest(tensors) for tensors in (weights, *other_weights)]
    assert len(set(digests)) == 4
    assert weights_digest(dict(reversed(weights.items()))) == digests[0]
