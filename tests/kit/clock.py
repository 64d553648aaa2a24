"""A clock that goes on only when a test says so."""

import miniformer.data.batching.loader
import miniformer.training.callbacks.budget
import miniformer.training.resume.callback
from miniformer.training.lit_module import MiniFormerLitModule


class Clock:
    """Stands for the module `time` where training reads the time.

    Args:
        now: seconds at first, an arbitrary number as that of the machine's clock is.
    """

    def __init__(self, now=1000.0):
        self.now = now

    def monotonic(self):
        return self.now

    perf_counter = monotonic

    def install(self, monkeypatch):
        """Has a run go by this clock."""
        modules = (
            miniformer.training.callbacks.budget,
            miniformer.data.batching.loader,
            miniformer.training.resume.callback,
        )
        for module in modules:
            monkeypatch.setattr(module, "time", self)
        return self

    def install_per_batch(self, monkeypatch, seconds):
        """Has a run go by this clock, of which each training batch takes so many seconds."""
        learn = MiniFormerLitModule.training_step

        def training_step(module, *args):
            self.now += seconds
            return learn(module, *args)

        monkeypatch.setattr(MiniFormerLitModule, "training_step", training_step)
        return self.install(monkeypatch)
