"""Signals end a run between optimizer steps."""

import contextlib
import signal
import types

import pytest

from miniformer.training.callbacks.interrupt import InterruptCallback, TrainingInterrupted


def test_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with InterruptCallback() as interrupt:
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def _default_signals():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.catches("signal_handlers_stay")
@pytest.mark.usefixtures("_default_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_handlers_are_restored(number):
    before = signal.getsignal(number)
    with contextlib.suppress(TrainingInterrupted), InterruptCallback() as interrupt:
        signal.raise_signal(number)
        assert interrupt.signal == number
        interrupt.on_train_batch_end()
    assert signal.getsignal(number) is before
    with contextlib.suppress(KeyError), InterruptCallback():
        raise KeyError
    assert signal.getsignal(number) is before


def test_signals_of_a_launcher_are_one_interrupt():
    with contextlib.suppress(TrainingInterrupted), InterruptCallback(grace_period=60) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        interrupt.on_train_batch_end()


def test_interrupt_stops_devices_after_the_same_step():
    """The rank with the signal sends it to the others with the next step; then all stop."""
    module = types.SimpleNamespace(stop_requested=False, between_steps=True)
    trainer = types.SimpleNamespace(world_size=2)
    with InterruptCallback(grace_period=60) as interrupt:
        interrupt.on_train_batch_end(trainer, module)
        assert not module.stop_requested
        signal.raise_signal(signal.SIGTERM)
        interrupt.on_train_batch_end(trainer, module)
        assert module.stop_requested  # a request, which the next step reduces over devices
        with pytest.raises(TrainingInterrupted):
            interrupt.on_train_batch_end(trainer, module)
