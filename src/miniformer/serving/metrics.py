"""Metrics of the server in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServerMetrics:
    """All metrics of a server, labeled with the model."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "finished requests", "path", "status")
        self.prompt_tokens = self._counter("prompt_tokens", "tokens of prompts", "model")
        self.reused = self._counter(
            "reused_prompt_tokens", "prompt tokens that another prompt began with", "model"
        )
        self.new_tokens = self._counter("generated_tokens", "generated tokens", "model")
        self.cancelled = self._counter("cancelled_requests", "requests whose client left", "model")
        self.queue = self._gauge("queue", "jobs that wait")
        self.slots = self._gauge("slots_in_use", "sequences that are decoded")
        self.step = self._histogram("step_seconds", "time of a step of all sequences")
        self.first_token = self._histogram("first_token_seconds", "time to the first token")

    def of(self, model: str) -> Metrics:
        """The metrics of a model."""
        return Metrics(self, model)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"miniformer_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"miniformer_{name}", help_text, ["model"], registry=self.registry)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(
            f"miniformer_{name}", help_text, ["model"], buckets=_SECONDS, registry=self.registry
        )


class Metrics:
    """Metrics of one model.

    Args:
        server: metrics of the server.
        model: name of the model.
    """

    def __init__(self, server: ServerMetrics, model: str) -> None:
        self.server, self.model = server, model

    def set_load(self, waiting: int, running: int) -> None:
        """Sets the number of waiting jobs and of slots in use."""
        self.server.queue.labels(self.model).set(waiting)
        self.server.slots.labels(self.model).set(running)

    def count_reused(self, num_tokens: int) -> None:
        """Counts prompt tokens that were not read, since another prompt began with them."""
        self.server.reused.labels(self.model).inc(num_tokens)

    def count_step(self, num_tokens: int, seconds: float) -> None:
        """Counts a step of all running sequences."""
        self.server.new_tokens.labels(self.model).inc(num_tokens)
        self.server.step.labels(self.model).observe(seconds)
