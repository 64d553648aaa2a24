"""The server under OpenAI's client, generated requests, and thousands of requests with faults.

`python -m pytest -m "" -s tests/slow/check_serving.py` prints the numbers of the load test.
"""

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.unit.serving.conftest import (
    TEMPLATE,
    classifier,
    language_model,
    running,
    translator,
)

REQUESTS = int(os.environ.get("SERVING_REQUESTS", "10000"))
_UNFINISHED = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 90\r\n\r\n{"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "chat"
    chat = language_model()
    chat.save(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    chat.directory = folder
    pipelines = {"lm": language_model(), "chat": chat, "labels": classifier(), "mt": translator()}
    with running(pipelines, slots=8, queue=64) as (address, models):
        yield address, models, pipelines


def completion_calls(client):
    """Calls of completions, with a check of each answer."""
    create = client.completions.create
    for number in range(12):
        prompt = ["a", "the cat", "äöü", "x" * 50][number % 4]
        options = {"temperature": 0.0} if number < 4 else {"seed": number, "top_p": 0.9}
        yield (
            create(model="lm", prompt=prompt, max_tokens=4 + number, **options),
            (lambda x, number=number: x.usage.completion_tokens == 4 + number),
        )
    yield create(model="lm", prompt=["a", "b"], n=2, max_tokens=3), lambda x: len(x.choices) == 4
    yield create(model="lm", prompt=[66, 67], max_tokens=3), lambda x: x.usage.prompt_tokens == 2
    yield (
        create(model="lm", prompt="a", logprobs=3, max_tokens=4),
        (lambda x: len(x.choices[0].logprobs.top_logprobs[0]) == 3),
    )
    yield (
        create(model="lm", prompt="ab", echo=True, max_tokens=2),
        (lambda x: x.choices[0].text.startswith("ab")),
    )
    yield create(model="mt", prompt="abc", max_tokens=5), lambda x: bool(x.choices[0].text)
    for field in ({"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"logit_bias": {"70": 5}},
                  {"stop": ["a"]}, {"extra_body": {"top_k": 3}}):  # fmt: skip
        yield create(model="lm", prompt="a", max_tokens=4, **field), lambda x: len(x.choices) == 1


def chat_calls(client):
    """Calls of chats and embeddings, with a check of each answer."""
    create = client.chat.completions.create
    for number in range(8):
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": str(number)}]
        yield (
            create(model="chat", messages=messages, max_tokens=4),
            (lambda x: x.choices[0].message.role == "assistant"),
        )
    user = [{"role": "user", "content": "hi"}]
    yield (
        create(model="chat", messages=user, max_tokens=3, logprobs=True, top_logprobs=2),
        (lambda x: len(x.choices[0].logprobs.content[0].top_logprobs) == 2),
    )
    schema = {"name": "x", "schema": {"enum": ["yes", "no"]}}
    yield create(
        model="chat", messages=user, max_tokens=8,
        response_format={"type": "json_schema", "json_schema": schema},
    ), lambda x: x.choices[0].message.content in {'"yes"', '"no"'}  # fmt: skip
    for encoding in ("float", "base64"):
        for size in (8, 32):
            yield (
                client.embeddings.create(
                    model="lm", input=["a", "b"], dimensions=size, encoding_format=encoding
                ),
                lambda x, encoding=encoding: len(x.data) == 2,
            )
    yield client.models.list(), lambda x: len(x.data) == 4
    yield client.models.retrieve("mt"), lambda x: x.id == "mt"


def test_openai_client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        calls = [*completion_calls(client), *chat_calls(client)]
        assert len(calls) >= 36
        assert all(check(answer) for answer, check in calls)
        stream = {"max_tokens": 12, "temperature": 0.0}
        for prompt in ("a", "the cat", "猫", "x" * 60):
            answer = client.completions.create(model="lm", prompt=prompt, **stream)
            chunks = [*client.completions.create(
                model="lm", prompt=prompt, stream=True, stream_options={"include_usage": True},
                **stream,
            )]  # fmt: skip
            text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
            assert text == answer.choices[0].text
            assert chunks[-1].usage == answer.usage
        for error, body in (
            (openai.BadRequestError, {"model": "lm", "prompt": "a", "max_tokens": 10**6}),
            (openai.NotFoundError, {"model": "none", "prompt": "a"}),
            (openai.BadRequestError, {"model": "labels", "prompt": "a"}),
            (openai.BadRequestError, {"model": "lm", "prompt": "a", "extra_body": {"topk": 1}}),
        ):
            with pytest.raises(error):
                client.completions.create(**body)


def test_async_openai_client(served):
    async def run():
        async with openai.AsyncOpenAI(
            base_url=f"{served[0]}/v1", api_key="none", max_retries=0
        ) as client:
            calls = [*completion_calls(client), *chat_calls(client)]
            answers = await asyncio.gather(*(call for call, _ in calls))
            stream = await client.completions.create(
                model="lm", prompt="a", max_tokens=8, temperature=0, stream=True
            )
            text = "".join([chunk.choices[0].text async for chunk in stream])
            answer = await client.completions.create(
                model="lm", prompt="a", max_tokens=8, temperature=0
            )
            assert text == answer.choices[0].text
        return [check(answer) for answer, (_, check) in zip(answers, calls, strict=True)]

    assert all(asyncio.run(run()))


def test_generated_requests(served):
    """No 5xx, and every answer has a status, a type and a form of the OpenAPI document."""
    pytest.importorskip("schemathesis")
    result = subprocess.run(
        [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
         f"{served[0]}/openapi.json", "--max-examples", "12", "--checks", CHECKS, "--phases",
         "coverage,fuzzing", "--continue-on-failure"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:]


@contextlib.contextmanager
def command(folder, *flags):
    """Runs the real command; yields its process and address, and prints the time until ready."""
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "miniformer.cli", "serve", f"lm={folder}", "--port", "0", *flags],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            line = next(line for line in process.stdout if line.startswith("serving on "))
            print(f"\nready after {time.monotonic() - started:.1f} s")
            yield process, line.split()[2].rstrip(";")
        finally:
            process.terminate()
            process.wait(30)


def memory_of(process):
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def gauge(address, name):
    """A number of /metrics."""
    lines = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"miniformer_{name}{{"))


class Load:
    """Requests of one client after another, of which a part has faults."""

    def __init__(self, address, pipeline):
        self.address, self.prompts = address, ["a", "the cat", "xyz " * 8, "äöü", "q" * 33]
        options = {"temperature": 0.0, "max_new_tokens": 12}
        self.texts = {prompt: pipeline.generate(prompt, **options) for prompt in self.prompts}
        self.counts, self.lock = {}, threading.Lock()

    def count(self, kind):
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def run(self, seed, number):
        """Sends `number` requests; returns descriptions of wrong answers."""
        rng, wrong = random.Random(seed), []
        with httpx.Client(base_url=self.address, timeout=120, trust_env=False) as client:
            for _ in range(number):
                kind = rng.choices(
                    ["whole", "stream", "left", "malformed", "type", "large", "slow"],
                    [35, 20, 30, 6, 6, 0.5, 0.5],
                )[0]
                self.count(kind)
                problem = getattr(self, f"send_{kind}")(client, rng.choice(self.prompts))
                if problem:
                    wrong.append(f"{kind}: {problem}")
        return wrong

    def body(self, prompt, **options):
        return {"model": "lm", "prompt": prompt, "max_tokens": 12, "temperature": 0, **options}

    def send_whole(self, client, prompt):
        while True:
            answer = client.post("/v1/completions", json=self.body(prompt))
            if answer.status_code != 429:
                break
            self.count("refused")
            time.sleep(0.05)
        text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
        return "" if text == self.texts[prompt] else text

    def send_stream(self, client, prompt):
        import json

        text = ""
        with client.stream("POST", "/v1/completions", json=self.body(prompt, stream=True)) as r:
            if r.status_code == 429:
                self.count("refused")
                return ""
            for line in r.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        return "" if text == self.texts[prompt] else text

    def send_left(self, client, prompt):
        body = self.body(prompt, stream=True, max_tokens=90)
        with (
            httpx.Client(base_url=self.address, timeout=60, trust_env=False) as own,
            own.stream("POST", "/v1/completions", json=body) as response,
        ):
            for _, line in zip(range(3), response.iter_lines(), strict=False):
                del line
        return ""

    def send_malformed(self, client, prompt):
        headers = {"content-type": "application/json"}
        answer = client.post("/v1/completions", content=b'{"prompt": "a', headers=headers)
        return "" if answer.status_code == 400 else str(answer.status_code)

    def send_type(self, client, prompt):
        answer = client.post("/v1/completions", json=self.body(prompt, n="two"))
        return "" if answer.status_code == 400 else str(answer.status_code)

    def send_large(self, client, prompt):
        answer = client.post("/v1/completions", json=self.body("x" * 50_000_000))
        return "" if answer.status_code == 413 else str(answer.status_code)

    def send_slow(self, client, prompt):
        host, port = self.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sender:
            sender.sendall(_UNFINISHED)
            time.sleep(0.3)  # and leaves before the end
        return ""


def test_load_with_faults(tmp_path):
    """All whole answers are right, bad requests have their status, and nothing is lost."""
    pipeline = language_model()
    pipeline.save(tmp_path / "model")
    with command(tmp_path / "model", "--queue", "64") as (process, address):
        load = Load(address, pipeline)
        with ThreadPoolExecutor(12) as executor:
            warm = [*executor.map(load.run, range(12), [max(20, REQUESTS // 60)] * 12)]
            memory, started = memory_of(process), time.monotonic()
            results = [*executor.map(load.run, range(100, 112), [REQUESTS // 12] * 12)]
        seconds, growth = time.monotonic() - started, memory_of(process) / memory - 1
        print(
            f"{REQUESTS} requests in {seconds:.0f} s, memory {memory / 1e6:.0f} MB {growth:+.1%}: "
            f"{load.counts}"
        )
        assert not [problem for wrong in (*warm, *results) for problem in wrong]
        deadline = time.monotonic() + 5
        while gauge(address, "slots_in_use") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert gauge(address, "slots_in_use") == gauge(address, "queue") == 0
        assert not load.run(1, 20)
        assert growth < 0.05


def test_the_directory_may_be_deleted_and_sigterm_ends_the_process_under_load(tmp_path):
    """Running requests are finished or get an answer within the bound."""
    folder = tmp_path / "model"
    language_model().save(folder)
    with command(folder) as (process, address):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        body = {"prompt": "abc", "max_tokens": 100, "temperature": 1.0, "n": 4}
        codes = []

        def send():
            with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
                try:
                    codes.append(client.post("/v1/completions", json=body).status_code)
                except httpx.TransportError:
                    codes.append(0)  # not accepted any more

        send()
        assert codes == [200]
        threads = [threading.Thread(target=send) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        print(f"ended {time.monotonic() - started:.1f} s after SIGTERM: {codes}")
        for thread in threads:
            thread.join()
    assert set(codes) <= {200, 429, 503, 0}
    assert codes.count(200) > 1
