"""Number of prompt tokens that a step reads beside running sequences."""

from __future__ import annotations

_STRETCH = 2.0  # of the time of a step by the prompts that it reads
_MIN_TOKENS = 16
_DOWN, _UP = 0.5, 0.05  # weights of a measurement below and above the estimate


class PromptPacer:
    """Chooses how much of the prompts a step reads, from the times of the steps so far.

    A step that reads prompts takes at most about twice the time of a step in which all sequences
    run, those that wait for their prompts included. So one prompt delays the streams of others
    little, and many prompts are read fast, since few streams run at that time.

    Args:
        most: most tokens beside running sequences.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._token: float | None = None  # seconds of a prompt token
        self._steps: dict[int, float] = {}  # seconds of a step, by the bits of its running rows

    def limit(self, num_running: int, num_waiting: int) -> int:
        """Most prompt tokens of the next step.

        Args:
            num_running: sequences that get their next token in the step.
            num_waiting: sequences whose prompts are not read.
        """
        if not num_running:
            return 4 * self.most
        step = self._steps.get(num_running.bit_length())
        if step is None:
            return 0  # this step measures it
        if self._token is None:
            return min(self.most, _MIN_TOKENS)
        # A row that is added to a step takes about the time of a prompt token.
        fitting = int((_STRETCH - 1) * step / self._token) + int(_STRETCH * num_waiting)
        return max(min(_MIN_TOKENS, self.most), min(fitting, self.most))

    def record(self, num_read: int, num_running: int, seconds: float) -> None:
        """Records a step that reads `num_read` prompt tokens beside `num_running` sequences."""
        key = num_running.bit_length()
        if not num_read:
            self._steps[key] = _estimate(self._steps.get(key), seconds)
            return
        rest = seconds - self._steps.get(key, 0.0)
        if num_read >= _MIN_TOKENS and rest > 0:
            self._token = _estimate(self._token, rest / num_read)


def _estimate(old: float | None, new: float) -> float:
    """Moving estimate near the lower end: other processes only make a step longer."""
    if old is None:
        return new
    return old + (_DOWN if new < old else _UP) * (min(new, 4 * old) - old)
