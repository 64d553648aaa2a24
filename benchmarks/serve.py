"""Throughput and latency of the server, beside one batched `generate` and one request at a time.

    python benchmarks/serve.py [--clients 32] [--requests 64] [--rounds 3] [--weights float32 int8]
        [--llama_python PATH] [--save]

The server runs in a process of its own. Clients are threads of this one, each of which sends its
requests one after the other; prompts have 8 to 96 tokens and answers 16 to 96. The same requests
are answered by one batched `generate`. A quarter of them is answered one after another, and by the
server of llama-cpp-python with the same weights as GGUF (f32, or q8_0 beside int8), if the Python
of `--llama_python` has it; neither has batches, so their rates do not depend on the number. The
contestants alternate, in a rotated order; results are medians. Then a prompt of 512 tokens arrives
while eight streams are written: the time between their tokens, median and 99th percentile, and the
time to the first token.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

import miniformer
from environment import environment
from miniformer import Pipeline, Tokenizer, Transformer, TransformerConfig
from miniformer.config import GenerationConfig
from miniformer.generation import api
from miniformer.tasks.language_modeling import LanguageModeling

LLAMA = "llama-cpp-python's server"
RESULTS = Path(__file__).parent / "results" / "serve.json"
SHAPE = {"vocab_size": 8192, "d_model": 384, "n_heads": 6, "n_layers": 6, "d_ff": 1024,
         "causal": True, "norm": "rmsnorm", "activation": "swiglu", "bias": False, "dropout": 0.0,
         "max_seq_len": 1024}  # fmt: skip


def make_model(folder):
    """A model directory with random weights."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train("byte", [""])
    pipeline = Pipeline(
        Transformer(TransformerConfig(**SHAPE)), tokenizer, LanguageModeling(), GenerationConfig()
    )
    pipeline.save(folder)
    return miniformer.load(folder)


def make_requests(count):
    """Prompts, of which each letter is a token, and numbers of new tokens."""
    rng = random.Random(0)
    return [(make_prompt(rng, rng.randint(8, 96)), rng.randint(16, 96)) for _ in range(count)]


def make_prompt(rng, length):
    """A text of random letters."""
    return "".join(rng.choices(string.ascii_lowercase, k=length))


@contextlib.contextmanager
def server(folder, weights, slots):
    """Runs the server; yields its address and the seconds until it is ready."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "miniformer.cli", "serve", f"lm={folder}", "--port", "0",
         "--weights", weights, "--slots", str(slots), "--queue", "256"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if line.startswith("serving on "):
                break
        yield line.split()[2].rstrip(";"), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def llama_server(python, folder, weights):
    """Runs the server of llama-cpp-python on a GGUF file of the model; yields its address."""
    file = folder.with_name(f"{weights}.gguf")
    kind = {"float32": "f32", "int8": "q8_0"}[weights]
    subprocess.run(
        [sys.executable, "-m", "miniformer.cli", "export", str(folder), str(file), "--to", "gguf",
         "--weights", kind], check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    threads = str(os.cpu_count())
    process = subprocess.Popen(
        [python, "-m", "llama_cpp.server", "--model", str(file), "--model_alias", "lm",
         "--n_ctx", "1024", "--n_threads", threads, "--n_threads_batch", threads,
         "--logits_all", "False", "--interrupt_requests", "False", "--verbose", "False",
         "--port", port],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/v1/models", trust_env=False).is_success:
                    break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def time_server(address, requests, clients):
    """Tokens a second of a server that answers all requests."""

    def send(request):
        prompt, count = request
        body = {"model": "lm", "prompt": prompt, "max_tokens": count, "temperature": 0}
        answer = client.post("/v1/completions", json=body)
        answer.raise_for_status()
        return answer.json()["usage"]["completion_tokens"]

    with httpx.Client(
        base_url=address, timeout=600, trust_env=False, limits=httpx.Limits(max_connections=None)
    ) as client:
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as executor:
            tokens = sum(executor.map(send, requests))
        seconds = time.perf_counter() - started
    assert tokens > 0.9 * sum(count for _, count in requests)  # none ends early
    return tokens / seconds


def time_generate(model, requests, weights, batch_size):
    """Tokens a second of `generate` for all requests, in batches of similar lengths."""
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(requests), batch_size):
            batch = requests[first : first + batch_size]
            options = GenerationConfig(
                max_new_tokens=max(count for _, count in batch), temperature=0.0,
                weight_dtype=weights,
            )  # fmt: skip
            inputs = [api.GenerationInput([*prompt.encode()]) for prompt, _ in batch]
            api.generate(model, inputs, options)
    return sum(count for _, count in requests) / (time.perf_counter() - started)


def stream_gaps(address, arrival):
    """Seconds between tokens of eight streams, and to the first token of a prompt of 512."""
    gaps, firsts = [], []

    def stream(prompt, count, times):
        body = {"model": "lm", "prompt": prompt, "max_tokens": count, "temperature": 0,
                "stream": True, "logprobs": 0}  # fmt: skip
        started = last = time.perf_counter()
        with client.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    times.append(now - last)
                    last = now
        return started

    with httpx.Client(
        base_url=address, timeout=600, trust_env=False, limits=httpx.Limits(max_connections=None)
    ) as client:
        rng, all_times = random.Random(1), []
        threads = []
        for _ in range(8):
            times = []
            all_times.append(times)
            prompt = make_prompt(rng, 16)
            threads.append(threading.Thread(target=stream, args=(prompt, 200, times)))
        for thread in threads:
            thread.start()
        if arrival:
            time.sleep(0.5)
            times = []
            stream(make_prompt(rng, 512), 4, times)
            firsts.append(times[0])
        for thread in threads:
            thread.join()
        for times in all_times:
            gaps += times[1:]
    return gaps, firsts


def measure(folder, pipeline, weights, options):
    """All rates and times of a type of weights."""
    requests = make_requests(options.requests)
    few = requests[: max(1, options.requests // 4)]
    by_length = sorted(requests, key=lambda item: item[1])
    with contextlib.ExitStack() as stack:
        address, ready = stack.enter_context(server(folder, weights, options.clients))
        contestants = {
            "server": lambda: time_server(address, requests, options.clients),
            "batched generate": lambda: time_generate(
                pipeline.model, by_length, weights, options.clients
            ),
            "one after another": lambda: time_generate(pipeline.model, few, weights, 1),
        }
        if options.llama_python is not None:
            llama_address = stack.enter_context(llama_server(options.llama_python, folder, weights))
            contestants[LLAMA] = lambda: time_server(llama_address, few, options.clients)
            time_server(llama_address, requests[:2], 2)
        names, values = [*contestants], {name: [] for name in contestants}
        time_server(address, requests[:4], 2)
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                values[name].append(contestants[name]())
        alone, _ = stream_gaps(address, arrival=False)
        loaded, firsts = stream_gaps(address, arrival=True)
    rates = {name: statistics.median(rate) for name, rate in values.items()}
    quantile = sorted(loaded)[int(0.99 * len(loaded))]
    return {
        "tokens_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "server, times": {
            name: round(rates["server"] / rate, 3)
            for name, rate in rates.items()
            if name != "server"
        },
        "gap_ms": {
            "median alone": round(1e3 * statistics.median(alone), 2),
            "median beside a prompt": round(1e3 * statistics.median(loaded), 2),
            "p99 beside a prompt": round(1e3 * quantile, 2),
            "p99 of the median": round(quantile / statistics.median(loaded), 2),
        },
        "first_token_of_512_ms": round(1e3 * firsts[0], 1),
        "ready_s": round(ready, 2),
    }


def has_llama_server(python):
    """True if a Python can run the server of llama-cpp-python."""
    command = [python, "-c", "import llama_cpp.server.app"]
    return not subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", nargs="+", default=["float32", "int8"])
    parser.add_argument(
        "--llama_python", metavar="PATH", help="a Python that has llama-cpp-python[server]"
    )
    parser.add_argument("--save", action="store_true", help="write results/serve.json")
    options = parser.parse_args()
    if options.llama_python is not None and not has_llama_server(options.llama_python):
        print("llama_cpp.server is not installed there and is skipped", file=sys.stderr)
        options.llama_python = None
    result = {
        "environment": environment("fastapi", "uvicorn"),
        "clients": options.clients,
        "requests": options.requests,
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        pipeline = make_model(folder)
        for weights in options.weights:
            result[weights] = measure(folder, pipeline, weights, options)
            print(weights, json.dumps(result[weights], indent=2), file=sys.stderr)
    text = json.dumps(result, indent=2)
    print(text)
    if options.save:
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
