"""Worker: the thread of a model.

It alternates between parts of a prompt, a step of all running sequences, and calls of other tasks,
so that none of them waits long for another.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.generation.slot_sequence import PendingPrompt
from miniformer.generation.slots import SlotDecoder
from miniformer.serving.config import ServeConfig
from miniformer.serving.jobs import Call, Failure, FairQueue, Job, Result, Sequence, Token
from miniformer.serving.metrics import Metrics
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
        self._pending: tuple[Sequence, PendingPrompt] | None = None
        self._running: dict[int, Sequence] = {}  # by slot
        self._thread = threading.Thread(target=self._run, name="miniformer-worker", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        pipeline = self.pipeline
        if generates_text(pipeline):
            options = GenerationConfig(weight_dtype=self.config.weights)
            self._decoder = SlotDecoder(
                pipeline.model.eval(),
                options,
                num_slots=num_slots(pipeline.model.config, self.config),
                return_logprobs=True,
            )
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
        queue = self._calls if isinstance(jobs[0], Call) else self._sequences
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
        pending = [] if self._pending is None else [self._pending[0]]
        return [*waiting, *pending, *self._running.values()]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    if self._stopping:
                        return
                    self.metrics.set_load(0, 0)
                    self._changed.wait()
                call = self._calls.pop()
                if self._pending is None and self._has_free_slot():
                    job = self._sequences.pop()
                else:
                    job = None
                self.metrics.set_load(len(self._sequences) + len(self._calls), len(self._running))
            self._drop_cancelled()
            if isinstance(call, Call):
                self._call(call)
            if isinstance(job, Sequence):
                self._begin(job)
            self._prefill()
            self._step()

    def _has_work(self) -> bool:
        waiting = len(self._sequences) + len(self._calls)
        return bool(waiting or self._pending is not None or self._running)

    def _has_free_slot(self) -> bool:
        return self._decoder is not None and self._decoder.num_free > 0

    def _call(self, job: Call) -> None:
        try:
            job.send(Result(job.function()))
        except Exception as error:  # the client gets it; the thread continues
            job.send(Failure(error))

    def _begin(self, job: Sequence) -> None:
        assert self._decoder is not None
        try:
            prompt = self._decoder.start(
                job.inputs, job.options, index=job.index, copy=job.copy,
                processors=job.processors, stop_fn=job.stop_fn, num_top=job.num_top,
                chunk=self.config.prefill_chunk,
            )  # fmt: skip
        except Exception as error:
            job.send(Failure(error))
        else:
            self._pending = job, prompt

    def _prefill(self) -> None:
        """Reads a part of the pending prompt; the sequence joins the others after the last one."""
        if self._pending is None:
            return
        job, prompt = self._pending
        assert self._decoder is not None
        try:
            if prompt.advance():
                self._pending = None
                self._running[self._decoder.insert(prompt)] = job
        except Exception as error:
            self._pending = None
            job.send(Failure(error))

    def _step(self) -> None:
        if not self._running:
            return
        assert self._decoder is not None
        start = time.perf_counter()
        try:
            steps = self._decoder.step()
        except Exception as error:  # of all sequences, such as logits that are not finite
            for slot in [*self._running]:
                self._leave(slot).send(Failure(error))
            return
        self.metrics.count_step(len(steps), time.perf_counter() - start)
        for step in steps:
            job = self._running[step.slot]
            if step.finished:
                self._leave(step.slot)
            job.send(Token(step.token, step.logprob or 0.0, step.finished, step.top))

    def _leave(self, slot: int) -> Sequence:
        assert self._decoder is not None
        self._decoder.remove(slot)
        return self._running.pop(slot)

    def _drop_cancelled(self) -> None:
        if self._pending is not None and self._pending[0].cancelled:
            self._pending = None
        for slot, job in [*self._running.items()]:
            if job.cancelled:
                self._leave(slot)


def generates_text(pipeline: Pipeline) -> bool:
    """True if the model continues prompts or answers sources."""
    return isinstance(pipeline.task, TextGenerationTask) and pipeline.tokenizer is not None


def num_slots(model_config: Any, config: ServeConfig) -> int:
    """Slots whose keys and values fit the memory, at most those of the settings.

    Raises:
        UserError: not one slot fits.
    """
    layers = model_config.n_decoder_layers or model_config.n_layers
    width = 2 * model_config.kv_heads * model_config.head_width * 4  # float32
    size = int(layers * width * model_config.max_seq_len)
    fitting = (parse_bytes(config.memory) or 0) // size
    if fitting < 2:  # a prompt that is prefilled has a cache of its own
        raise UserError(
            f"memory={config.memory} holds less than two sequences of {size / 1e6:,.0f} MB; raise "
            "memory"
        )
    return min(config.slots, fitting - 1)
