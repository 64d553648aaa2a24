"""A clock that goes on only when a test says so."""

import miniformer.data.batches
import miniformer.training.budget
import miniformer.training.run_state


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
            miniformer.training.budget,
            miniformer.data.batches,
            miniformer.training.run_state,
        )
        for module in modules:
            monkeypatch.setattr(module, "time", self)
        return self
