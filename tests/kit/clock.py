"""A clock that only tests advance."""

import miniformer.data.batching.loader
import miniformer.training.callbacks.budget
import miniformer.training.resume.callback
from miniformer.training.lit_module import MiniFormerLitModule


class Clock:
    """Replacement of the module `time` in training.

    Args:
        now: initial time in seconds.
    """

    def __init__(self, now=1000.0):
        self.now = now

    def monotonic(self):
        return self.now

    perf_counter = monotonic

    def install(self, monkeypatch):
        """Makes training use this clock."""
        modules = (
            miniformer.training.callbacks.budget,
            miniformer.data.batching.loader,
            miniformer.training.resume.callback,
        )
        for module in modules:
            monkeypatch.setattr(module, "time", self)
        return self

    def install_per_batch(self, monkeypatch, seconds):
        """Makes training use this clock; each training batch advances it by `seconds`."""
        original = MiniFormerLitModule.training_step

        def training_step(module, *args):
            self.now += seconds
            return original(module, *args)

        monkeypatch.setattr(MiniFormerLitModule, "training_step", training_step)
        return self.install(monkeypatch)
