"""State that a resumed run restores."""

import json
import random

import numpy as np
import pytest
import torch

from miniformer.training.resume.rng_state import get_rng_state, set_rng_state


@pytest.mark.catches("resumed_run_has_other_numpy_numbers")
def test_rng_state_is_restored_from_json():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    saved = json.loads(json.dumps(get_rng_state()))
    expected = draw()
    assert draw() != expected
    set_rng_state(saved)
    assert draw() == expected
