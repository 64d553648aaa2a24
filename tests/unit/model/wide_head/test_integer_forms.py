"""The forms of operations for exports give the results of the others."""

import pytest
import torch

from miniformer.model.wide_head import integer_forms


@pytest.mark.catches("search_of_an_export_is_off_by_one")
def test_forms_of_an_export_have_equal_results(monkeypatch):
    random = torch.Generator().manual_seed(0)
    wide = torch.randint(-(2**62), 2**62, (50,), generator=random) * 2
    extremes = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 2**32, -(2**32), -(2**32) - 1])
    values = torch.cat([wide, extremes])
    monkeypatch.setattr(integer_forms, "is_exporting", lambda: True)
    for count in (1, 2, 3, 4, 7, 8, 9, 50):
        keys = values[:count].sort().values
        near = torch.cat([values, keys - 1, keys, keys + 1])
        expected = torch.searchsorted(keys, near).clamp_max(count - 1)
        assert torch.equal(integer_forms.find_sorted(keys, near), expected)
    assert integer_forms.used_columns(torch.tensor([1, 3]), 5) == 5


def test_used_values_move_to_the_front():
    is_used = torch.tensor([[True, False, True, True], [False, False, False, True]])
    values = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    (moved,) = integer_forms.move_to_front(is_used, values)
    assert moved.tolist() == [[5, 7, 8, 0], [4, 0, 0, 0]]
    assert integer_forms.used_columns(torch.tensor([1, 3]), 5) == 3
    assert integer_forms.used_columns(torch.tensor([0, 0]), 5) == 1
