"""Joined predictions: equal to single ones, in one call, and errors of their own requests only."""

import asyncio
import copy
import threading

import pytest
import torch

pytest.importorskip("prometheus_client")

from miniformer.config import InputError, UserError
from miniformer.serving.config import ServeConfig
from miniformer.serving.metrics import ServerMetrics
from miniformer.serving.scheduling import predictions
from miniformer.serving.scheduling.jobs import Call, Failure, Mailbox, Prediction, next_request
from miniformer.serving.scheduling.worker import Worker
from tests.kit import tiny_model

TEXTS = [["abc"], ["hgf edcba lkji"], ["a", "b" * 100], ["fed cba"], ["c"] * 3]


def answers(pipeline, function, requests):
    """Events of requests that wait while the thread is busy, and the numbers of inputs of calls."""
    sizes = list[int]()

    def counted(inputs):
        sizes.append(len(inputs))
        return function(inputs)

    async def run():
        busy = threading.Event()
        jobs = [Prediction(next_request(), Mailbox(), "group", x, counted) for x in requests]
        unrelated = Prediction(next_request(), Mailbox(), "other group", [0], lambda inputs: inputs)
        worker.submit([Call(next_request(), Mailbox(), busy.wait)])
        for job in (*jobs[:1], unrelated, *jobs[1:]):
            worker.submit([job])
        busy.set()
        events = [await job.mailbox.take(60) for job in (*jobs, unrelated)]
        assert events.pop()[0][1].value == [0]
        return [event for ((_, event),) in events]

    worker = Worker(pipeline, ServeConfig(), ServerMetrics().of("model"))
    worker.start()
    try:
        return asyncio.run(run()), sizes
    finally:
        worker.stop(5)


def test_weights_that_a_model_cannot_have_are_refused_at_the_start(pipelines):
    pipeline = copy.copy(pipelines["labels"])
    pipeline.model = tiny_model(causal=False, d_ff=40)  # inputs of 16 and 40 values
    worker = Worker(pipeline, ServeConfig(weights="int8"), ServerMetrics().of("model"))
    with pytest.raises(UserError, match="weight_dtype=int8 needs the native kernels: its layers"):
        worker.start()


@pytest.mark.catches("joined_answers_go_to_the_next_request")
def test_joined_answers_equal_single_ones(pipelines):
    pipeline = pipelines["labels"]
    events, sizes = answers(pipeline, pipeline.predict_all, TEXTS)
    assert sizes == [sum(map(len, TEXTS))]
    for event, texts in zip(events, TEXTS, strict=True):
        assert len(event.value) == len(texts)
        for got, text in zip(event.value, texts, strict=True):
            assert got["scores"] == pytest.approx(pipeline.predict(text)["scores"], abs=1e-5)
    events, sizes = answers(pipeline, lambda inputs: pipeline.embed(inputs).numpy(), TEXTS)
    assert len(sizes) == 1
    for event, texts in zip(events, TEXTS, strict=True):
        want = torch.cat([pipeline.embed([text]) for text in texts])
        torch.testing.assert_close(torch.tensor(event.value), want, rtol=0, atol=1e-5)


def test_joined_scores_equal_single_ones(pipelines):
    pipeline = pipelines["lm"]
    events, sizes = answers(pipeline, pipeline.score, TEXTS)
    assert len(sizes) == 1
    for event, texts in zip(events, TEXTS, strict=True):
        for got, text in zip(event.value, texts, strict=True):
            (want,) = pipeline.score([text])
            assert got.logprobs == pytest.approx(want.logprobs, abs=1e-5)


@pytest.mark.catches("an_invalid_input_fails_all_that_are_joined")
def test_an_invalid_input_is_an_error_of_its_own_request(pipelines):
    pipeline = pipelines["labels"]
    requests = [["abc"], ["a" * 1000], ["fed"]]  # the second one is too long
    events, sizes = answers(pipeline, pipeline.predict_all, requests)
    assert sizes == [3, 1, 1, 1]
    assert isinstance(events[1], Failure)
    assert isinstance(events[1].error, InputError)
    for number in (0, 2):
        assert events[number].value == pipeline.predict_all(requests[number])


@pytest.mark.catches("any_number_of_inputs_is_joined")
def test_a_call_is_bounded(pipelines, monkeypatch):
    pipeline = pipelines["labels"]
    monkeypatch.setattr(predictions, "_MAX_INPUTS", 4)
    events, sizes = answers(pipeline, pipeline.predict_all, TEXTS)
    assert sizes == [4, 4]
    monkeypatch.setattr(predictions, "_MAX_INPUTS", 64)
    monkeypatch.setattr(predictions, "_MAX_LENGTH", 200)
    events, sizes = answers(pipeline, pipeline.predict_all, TEXTS)
    assert sizes == [6, 2]  # of these, one has 100 characters
    assert [len(event.value) for event in events] == [*map(len, TEXTS)]
