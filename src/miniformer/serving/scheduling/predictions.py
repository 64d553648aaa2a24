"""Joined predictions: inputs of several requests in one call of the model.

Requests are joined that wait while the thread of the model is busy, so that none waits for others
to come. The model batches their inputs by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miniformer.serving.scheduling.jobs import Failure, FairQueue, Job, Prediction, Result

# Of a call, so that streams of the same model wait for a short time.
_MAX_INPUTS = 64
_MAX_LENGTH = 32_768  # characters or other elements, padded to the longest input


def join_waiting(first: Prediction, queue: FairQueue) -> list[Prediction]:
    """A prediction, and those of the queue that are computed with it; they leave the queue."""
    jobs = [first]
    count, longest = len(first.inputs), _longest(first)

    def fits(job: Job) -> bool:
        if not isinstance(job, Prediction) or job.group != first.group or job.cancelled:
            return False
        total = count + len(job.inputs)
        return total <= _MAX_INPUTS and total * max(longest, _longest(job)) <= _MAX_LENGTH

    while (job := queue.pop_where(fits)) is not None:
        assert isinstance(job, Prediction)
        jobs.append(job)
        count, longest = count + len(job.inputs), max(longest, _longest(job))
    return jobs


def run_predictions(jobs: Sequence[Prediction]) -> None:
    """Computes predictions of one group together, and sends each job its own.

    If that fails, each job is computed alone, so that an invalid input is an error of its own
    request only.
    """
    inputs = [item for job in jobs for item in job.inputs]
    try:
        answers = jobs[0].function(inputs)
    except Exception as error:  # the client gets it; the thread continues
        if len(jobs) == 1:
            jobs[0].send(Failure(error))
            return
        for job in jobs:
            run_predictions([job])
        return
    start = 0
    for job in jobs:
        end = start + len(job.inputs)
        job.send(Result(answers[start:end]))
        start = end


def _longest(job: Prediction) -> int:
    return max(_length(item) for item in job.inputs)


def _length(item: Any) -> int:
    """Characters of a text, of the texts of a pair, or the number of vectors of an input."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, list | tuple):
        return sum(len(part) if isinstance(part, str) else 1 for part in item)
    return 1
