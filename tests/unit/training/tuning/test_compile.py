"""The summary of torch.compile."""

import pytest


@pytest.mark.catches("compilation_pays_back_in_batches")
def test_compile_summary_has_cost_and_speedup():
    from miniformer.training.tuning.compile import format_compile_summary

    assert format_compile_summary(10.0, 0.05, 0.03, 1, 2000).endswith(
        "it pays back after 500 steps of 2,000"
    )
    assert format_compile_summary(10.0, 0.05, 0.03, 2, None).endswith(
        "it pays back after 250 steps"
    )
    assert "does not pay back here; leave out --compile" in format_compile_summary(
        10.0, 0.05, 0.06, 1, None
    )
