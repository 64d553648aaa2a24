"""A measured process: `python child.py KIND PATH WORKLOAD`.

It is started as a file, so that it imports only what the artifact needs. It prints `first` after
the first token or classification, then the results as JSON.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def ids_below(end: int, length: int) -> list[int]:
    """Token ids of an input, the same for each artifact of a model."""
    return [(7 * position + 3) % end for position in range(length)]


class Miniformer:
    """A model directory."""

    def __init__(self, path: str, threads: int) -> None:
        import torch

        from miniformer.checkpoint.pipeline import load
        from miniformer.exporters.source import read_source

        if threads:
            torch.set_num_threads(threads)
        source: Any = load(path) if (Path(path) / "task.json").exists() else read_source(Path(path))
        self.model, self.task = source.model.eval(), source.task
        config = self.model.config
        self.is_seq2seq = hasattr(self.model, "decoder")
        self.is_decoder = self.is_seq2seq or (config.causal and not hasattr(self.task, "logits"))
        self.vocab_size, self.width = config.vocab_size, config.input_dim

    def tokens(self, ids: list[int], count: int) -> Iterator[int]:
        """Generates tokens greedily."""
        import torch

        from miniformer.config import GenerationConfig
        from miniformer.generation.api import GenerationInput, stream

        options = GenerationConfig(max_new_tokens=count, temperature=0.0)
        inputs = GenerationInput(ids)
        if self.is_seq2seq:
            source = ids if self.width is None else torch.zeros(len(ids), self.width)
            inputs = GenerationInput(ids[:1], source)
        yield from stream(self.model, inputs, options)

    def classify(self, ids: list[int]) -> None:
        """Computes the outputs of an input."""
        import torch

        inputs = torch.tensor([ids])
        if self.width is not None:
            inputs = torch.zeros(1, len(ids), self.width)
        batch = {"inputs": inputs, "attention_mask": torch.ones(1, len(ids), dtype=torch.bool)}
        with torch.inference_mode():
            if hasattr(self.task, "logits"):
                self.task.logits(self.model, batch)
            else:
                self.model(inputs)


class Onnx:
    """A folder of ONNX graphs, by its run.py."""

    def __init__(self, path: str, threads: int) -> None:
        sys.path.insert(0, path)
        import run  # type: ignore[import-not-found]

        self.model = run.Model(path, threads)
        about = self.model.about
        self.is_decoder = "decoder" in about["files"]
        self.vocab_size, self.width = about["vocab_size"], about["input"]["width"]

    def tokens(self, ids: list[int], count: int) -> Iterator[int]:
        """Generates tokens greedily."""
        if "encoder" in self.model.graphs:
            self.model.about["start"] = ids[:1]
        state = self.model.start([self._inputs(ids)])
        for _ in range(count):
            token = state.logits.argmax(-1)
            yield int(token[0])
            state.append(token)

    def classify(self, ids: list[int]) -> None:
        """Computes the outputs of an input."""
        import numpy as np

        feeds = {"attention_mask": np.ones((1, len(ids)), np.int64)}
        graph = self.model.graph("model")
        graph.run(feeds | {next(iter(graph.inputs)): np.array([self._inputs(ids)])} | {
            name: np.zeros((1, len(ids)), np.int64) for name in ("token_type_ids",)
        })  # fmt: skip

    def _inputs(self, ids: list[int]) -> Any:
        import numpy as np

        return ids if self.width is None else np.zeros((len(ids), self.width), np.float32)


class Programs:
    """A folder of programs, whose export.json names inputs in order."""

    def __init__(self, path: str, threads: int) -> None:
        import numpy as np

        self.np = np
        self.about = json.loads((Path(path) / "export.json").read_text(encoding="utf-8"))
        files = self.about["files"].items()
        load = getattr(self, "_load_" + self.about["to"])
        self.programs = {part: load(f"{path}/{name}", threads) for part, name in files}
        self.is_decoder = "decoder" in self.programs
        self.vocab_size, self.width = self.about["vocab_size"], self.about["input"]["width"]

    def tokens(self, ids: list[int], count: int) -> Iterator[int]:
        """Generates tokens greedily."""
        np = self.np
        memory: list[Any] = []
        prompt = ids
        if "encoder" in self.programs:
            source_mask = np.ones((1, len(ids)), np.int64)
            memory = [*self.programs["encoder"]([self._inputs(ids), source_mask]), source_mask]
            prompt = ids[:1]
        row, mask = np.array([prompt]), np.ones((1, len(prompt) + 1), np.int64)
        mask[0, 0] = 0
        sizes = self.about["past"]
        past: list[Any] = [np.zeros((1, heads, 1, width), np.float32) for heads, width in sizes]
        for _ in range(count):
            last = np.array([row.shape[1] - 1])
            logits, *past = self.programs["decoder"]([row, mask, *past, *memory, last])
            row = np.array(logits).argmax(-1)
            yield int(row[0, 0])
            mask = np.concatenate((mask, np.ones((1, 1), np.int64)), 1)

    def classify(self, ids: list[int]) -> None:
        """Computes the outputs of an input."""
        inputs = [self._inputs(ids), self.np.ones((1, len(ids)), self.np.int64)]
        names = self.about["names"]["model"]["inputs"]
        self.programs["model"](inputs + [self.np.zeros_like(inputs[1]) for _ in names[2:]])

    def _inputs(self, ids: list[int]) -> Any:
        if self.width is None:
            return self.np.array([ids])
        return self.np.zeros((1, len(ids), self.width), self.np.float32)

    def _load_pt2(self, path: str, threads: int) -> Any:
        import torch

        return self._with_tensors(torch.export.load(path).module(), threads)

    def _load_aoti(self, path: str, threads: int) -> Any:
        import torch._inductor

        return self._with_tensors(torch._inductor.aoti_load_package(path), threads)

    def _with_tensors(self, module: Any, threads: int) -> Any:
        import torch

        if threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        return lambda inputs: module(*map(torch.as_tensor, inputs))

    def _load_openvino(self, path: str, threads: int) -> Any:
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        compiled: Any = openvino.Core().compile_model(path, "CPU", settings)
        return lambda inputs: [*compiled(inputs).values()]


class Gguf:
    """A file of llama.cpp, by llama-cpp-python."""

    is_decoder = True

    def __init__(self, path: str, threads: int) -> None:
        from llama_cpp import Llama

        options = {"n_threads": threads} if threads else {}
        self.model = Llama(path, n_ctx=0, verbose=False, **options)
        self.vocab_size = self.model.n_vocab()

    def tokens(self, ids: list[int], count: int) -> Iterator[int]:
        """Generates tokens greedily."""
        self.model.reset()
        yield from itertools.islice(self.model.generate(ids, temp=0.0), count)


KINDS = {
    "miniformer": Miniformer, "onnx": Onnx, "pt2": Programs, "aoti": Programs,
    "openvino": Programs, "gguf": Gguf,
}  # fmt: skip


def peak_memory() -> float:
    """Largest memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere the number includes that of the parent before its exec
        fields = dict(x.split(":", 1) for x in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(kind: str, path: str, workload: list[int]) -> None:
    """Measures an artifact."""
    prompt_tokens, num_tokens, threads = workload
    model: Any = KINDS[kind](path, threads)
    ids = ids_below(model.vocab_size, prompt_tokens)
    results = {}
    if model.is_decoder:
        next(iter(model.tokens(ids, 1)))
        print("first", flush=True)
        times = [time.perf_counter() for _ in model.tokens(ids, num_tokens + 1)]
        if len(times) > 1:  # the time between tokens, without that of the prompt
            results["token_ms"] = 1000 * (times[-1] - times[0]) / (len(times) - 1)
    else:
        model.classify(ids)
        print("first", flush=True)
        times = []
        for _ in range(num_tokens + 1):
            model.classify(ids)
            times.append(time.perf_counter())
        results["classification_ms"] = 1000 * (times[-1] - times[0]) / (len(times) - 1)
    print(json.dumps({"memory_mb": peak_memory(), **results}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
