import pytest

from miniformer.serving.scheduling.pacing import PromptPacer


@pytest.mark.catches("prompts_are_read_as_fast_as_they_can_be")
def test_a_step_that_reads_prompts_takes_about_twice_its_time():
    """The simulated step takes 10 ms, and 0.25 ms for each prompt token."""
    pacer, times = PromptPacer(256), []
    for _ in range(10):
        pacer.record(0, 8, 0.010)
    for _ in range(40):
        count = pacer.limit(8, 1)
        times.append(0.010 + 0.00025 * count)
        pacer.record(count, 8, times[-1])
    assert max(times[5:]) < 0.025
    assert min(times[5:]) > 0.018


def test_one_slow_step_changes_little_and_no_stream_means_no_limit():
    pacer = PromptPacer(64)
    for _ in range(20):
        pacer.record(0, 4, 0.010)
        pacer.record(32, 4, 0.020)
    before = pacer.limit(4, 1)
    pacer.record(32, 4, 5.0)
    assert 16 <= pacer.limit(4, 1) <= before
    assert pacer.limit(0, 1) == 256


@pytest.mark.catches("waiting_sequences_do_not_count")
def test_many_prompts_are_read_faster_than_one():
    """Twelve waiting sequences would lengthen a step by as much as their prompt tokens do now."""
    pacer = PromptPacer(256)
    pacer.record(0, 8, 0.010)
    pacer.record(40, 8, 0.020)
    assert pacer.limit(8, 1) == 42
    assert pacer.limit(8, 12) == 64


@pytest.mark.catches("unknown_steps_read_few_tokens")
def test_a_step_of_unknown_time_reads_no_prompt():
    pacer = PromptPacer(64)
    pacer.record(0, 4, 0.010)
    assert pacer.limit(9, 1) == 0
    pacer.record(0, 9, 0.010)
    assert pacer.limit(9, 1) == 16
