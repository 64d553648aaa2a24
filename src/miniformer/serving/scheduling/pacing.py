"""Number of prompt tokens that a step reads beside running sequences."""

from __future__ import annotations

_STRETCH = 2.2  # of the time of a step by the prompts that it reads
_MIN_TOKENS = 16
_WEIGHT = 0.2  # of the newest measurement


class PromptPacer:
    """Chooses how much of the prompts a step reads, from the times of the steps so far.

    A step that reads prompts takes at most about twice the time of one that reads none.

    Args:
        most: most tokens beside running sequences.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._token: float | None = None  # seconds of a prompt token
        self._steps: dict[int, float] = {}  # seconds of a step, by the bits of its running rows

    def limit(self, num_running: int) -> int | None:
        """Most prompt tokens of the next step; None: all, since no sequence would wait."""
        if not num_running:
            return 4 * self.most
        step = self._steps.get(num_running.bit_length())
        if step is None or self._token is None:
            return min(self.most, _MIN_TOKENS)
        fitting = int((_STRETCH - 1) * step / self._token)
        return max(min(_MIN_TOKENS, self.most), min(fitting, self.most))

    def record(self, num_read: int, num_running: int, seconds: float) -> None:
        """Records a step that reads `num_read` prompt tokens beside `num_running` sequences."""
        key = num_running.bit_length()
        if not num_read:
            self._steps[key] = _mean(self._steps.get(key), seconds)
            return
        rest = seconds - self._steps.get(key, 0.0)
        if num_read >= _MIN_TOKENS and rest > 0:
            self._token = _mean(self._token, rest / num_read)


def _mean(old: float | None, new: float) -> float:
    """Moving average; one interruption of the process counts little."""
    if old is None:
        return new
    return old + _WEIGHT * (min(new, 4 * old) - old)
