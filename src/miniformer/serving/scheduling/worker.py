"""Worker: the thread of a model.

It alternates between a step of all running sequences, which also reads parts of prompts, and calls
of other tasks, so that none of them waits long for another. Predictions that wait are joined.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.generation.inference import inference_model
from miniformer.generation.slots import SlotDecoder
from miniformer.serving.config import ServeConfig
from miniformer.serving.metrics import Metrics
from miniformer.serving.scheduling.jobs import (
    Call,
    Failure,
    FairQueue,
    Job,
    Prediction,
    Result,
    Sequence,
    Token,
    Tokens,
    post,
)
from miniformer.serving.scheduling.pacing import PromptPacer
from miniformer.serving.scheduling.predictions import join_waiting, run_predictions
from miniformer.tasks.common.text_generation import TextGenerationTask
from miniformer.utils.units import parse_bytes


class QueueFull(Exception):
    """There is no room for another request."""


class Worker:
    """Runs the jobs of one model in a thread of its own.

    Args:
        pipeline: the model, which no other thread may use.
        config: settings of the server.
        metrics: counters of the server, for this model.
    """

    def __init__(self, pipeline: Pipeline, config: ServeConfig, metrics: Metrics) -> None:
        self.pipeline, self.config, self.metrics = pipeline, config, metrics
        self._sequences, self._calls = FairQueue(config.queue), FairQueue(config.queue)
        self._changed = threading.Condition()
        self._stopping = False
        self._decoder: SlotDecoder | None = None
        self._running: dict[int, Sequence] = {}  # by slot
        self._pacer, self._num_reused = PromptPacer(config.prefill_chunk), 0
        self._thread = threading.Thread(target=self._run, name="miniformer-worker", daemon=True)

    def start(self) -> None:
        """Starts the thread.

        Raises:
            UserError: the model cannot have the type of weights.
        """
        pipeline = self.pipeline
        if generates_text(pipeline):
            options = GenerationConfig(weight_dtype=self.config.weights)
            self._decoder = SlotDecoder(
                pipeline.model.eval(),
                options,
                num_slots=num_slots(
                    pipeline.model.config, self.config, hasattr(pipeline.model, "decoder")
                ),
                return_logprobs=True,
                on_error=self._fail,
            )
        else:
            inference_model(pipeline.model, self.config.weights)  # converts the weights
        self._thread.start()

    @property
    def num_slots(self) -> int:
        """Slots of the decoder; 0: the model generates no text."""
        return 0 if self._decoder is None else self._decoder.num_slots

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def submit(self, jobs: list[Job]) -> None:
        """Adds the jobs of a request.

        Raises:
            QueueFull: there is no room for all of them.
        """
        queue = self._sequences if isinstance(jobs[0], Sequence) else self._calls
        with self._changed:
            queue.drop_cancelled()
            if self._stopping or not queue.push(jobs):
                raise QueueFull
            self._changed.notify()

    def stop(self, seconds: float) -> None:
        """Refuses new jobs, and waits for the others for at most `seconds`; then ends them."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            for job in self._all_jobs():
                job.cancel()
                job.send(Failure(UserError("the server is shutting down")))
            self._changed.notify()
        self._thread.join(seconds)

    def _all_jobs(self) -> list[Job]:
        waiting = [*iter(self._sequences.pop, None), *iter(self._calls.pop, None)]
        return [*waiting, *self._running.values()]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    if self._stopping:
                        return
                    self.metrics.set_load(0, 0)
                    self._changed.wait()
                call = self._calls.pop()
                joined = join_waiting(call, self._calls) if isinstance(call, Prediction) else []
                self._drop_cancelled()
                jobs = [*self._next_sequences()]
                waiting = len(self._sequences) + len(self._calls)
            if isinstance(call, Call):
                self._call(call)
            elif joined:
                run_predictions(joined)
            for job in jobs:
                self._begin(job)
            self.metrics.set_load(waiting, len(self._running))
            self._step()

    def _has_work(self) -> bool:
        return bool(len(self._sequences) + len(self._calls) or self._running)

    def _next_sequences(self) -> list[Sequence]:
        """Waiting sequences for the free slots; one at a time if their sources are encoded."""
        if self._decoder is None:
            return []
        count = self._decoder.num_free
        if hasattr(self.pipeline.model, "decoder"):
            count = min(count, 1)
        jobs = (self._sequences.pop() for _ in range(count))
        return [job for job in jobs if isinstance(job, Sequence)]

    def _call(self, job: Call) -> None:
        try:
            job.send(Result(job.function()))
        except Exception as error:  # the client gets it; the thread continues
            job.send(Failure(error))

    def _begin(self, job: Sequence) -> None:
        assert self._decoder is not None
        try:
            slot = self._decoder.add(
                job.inputs, job.options, index=job.index, copy=job.copy,
                processors=job.processors, stop_fn=job.stop_fn, num_top=job.num_top or 0,
                with_logprobs=job.num_top is not None,
            )  # fmt: skip
        except Exception as error:
            job.send(Failure(error))
        else:
            self._running[slot] = job
            reused = self._decoder.num_reused
            self.metrics.count_reused(max(0, reused - self._num_reused))
            self._num_reused = reused

    def _step(self) -> None:
        """Decodes a token of each sequence, reads parts of prompts, and sends what is new."""
        if not self._running:
            return
        assert self._decoder is not None
        start = time.perf_counter()
        decoding = self._decoder.num_decoding
        limit = self._pacer.limit(decoding, len(self._running) - decoding)
        try:
            steps = self._decoder.step(limit)
        except Exception as error:  # of all sequences
            for slot in [*self._running]:
                self._leave(slot).send(Failure(error))
            return
        seconds = time.perf_counter() - start
        self._pacer.record(self._decoder.num_read, decoding, seconds)
        self.metrics.count_step(len(steps), seconds)
        events = list[tuple[Job, Any]]()
        for slot, token, logprob, finished, top in steps:
            job = self._running[slot]
            if finished:
                self._leave(slot)
            job.tokens.append(Token(token, logprob or 0.0, finished, top))
            if finished or job.is_streamed:
                events.append((job, Tokens(job.tokens)))
                job.tokens = []
        post(events)

    def _fail(self, slot: int, error: UserError) -> None:
        """Ends a sequence that cannot continue."""
        self._leave(slot).send(Failure(error))

    def _leave(self, slot: int) -> Sequence:
        assert self._decoder is not None
        self._decoder.remove(slot)
        return self._running.pop(slot)

    def _drop_cancelled(self) -> None:
        for slot, job in [*self._running.items()]:
            if job.cancelled:
                self._leave(slot)


def generates_text(pipeline: Pipeline) -> bool:
    """True if the model continues prompts or answers sources."""
    return isinstance(pipeline.task, TextGenerationTask) and pipeline.tokenizer is not None


def num_slots(model_config: Any, config: ServeConfig, has_source: bool = False) -> int:
    """Slots whose keys and values fit the memory, at most those of the settings.

    Args:
        model_config, config: of the model, and of the server.
        has_source: keys and values of a source are stored, too.

    Raises:
        UserError: not one slot fits.
    """
    layers = model_config.n_decoder_layers or model_config.n_layers
    width = 2 * model_config.kv_heads * model_config.head_width * 4  # float32
    size = int(layers * width * model_config.max_seq_len)
    if has_source:
        size *= 2
    fitting = (parse_bytes(config.memory) or 0) // size
    if fitting < 2:  # without the kernels, a prompt that is read has a cache of its own
        raise UserError(
            f"memory={config.memory} holds less than two sequences of {size / 1e6:,.0f} MB; raise "
            "memory"
        )
    return min(config.slots, fitting - 1)
