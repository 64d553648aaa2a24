"""A server on loopback with a language model, a chat model, a classifier and a translator."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import torch

from miniformer import Seq2SeqTransformer, Tokenizer, Transformer, TransformerConfig
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq

SIZE = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "dropout": 0.0}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def language_model():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train("byte", [""])
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, causal=True, **SIZE)
    options = GenerationConfig(eos_id=tokenizer.eos_id)
    return Pipeline(Transformer(config).eval(), tokenizer, LanguageModeling(), options)


def classifier():
    torch.manual_seed(1)
    tokenizer = Tokenizer.train("char", ["abcdefgh ijkl"])
    task = Classification(input_kind="text", classes=["no", "yes", "unsure"])
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, output_dim=3, **SIZE)
    return Pipeline(Transformer(config).eval(), tokenizer, task)


def translator():
    torch.manual_seed(2)
    tokenizer = Tokenizer.train("char", ["abcdefgh ijkl"])
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, **SIZE)
    options = GenerationConfig(
        eos_id=tokenizer.eos_id, max_new_tokens=8, min_new_tokens=3, temperature=0.0
    )
    return Pipeline(Seq2SeqTransformer(config).eval(), tokenizer, Seq2Seq(), options)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "chat"
    chat = language_model()
    chat.save(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    chat.directory = folder
    return {"lm": language_model(), "chat": chat, "labels": classifier(), "mt": translator()}


@contextlib.contextmanager
def running(pipelines, **settings):
    """Runs a server in a thread; yields its address and its models."""
    uvicorn = pytest.importorskip("uvicorn")
    from miniformer.serving.app import make_app
    from miniformer.serving.config import ServeConfig
    from miniformer.serving.metrics import ServerMetrics
    from miniformer.serving.models import load_models

    config, metrics = ServeConfig(**settings), ServerMetrics()
    models = load_models(pipelines, config, metrics)
    app = make_app(models, config, metrics)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", models
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        for item in models.by_name.values():
            item.worker.stop(5)


@pytest.fixture(scope="session")
def server(pipelines):
    with running(pipelines, slots=4, prefill_chunk=8, queue=32) as (address, models):
        yield address, models


@pytest.fixture
def client(server):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server):
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server[0], timeout=30, trust_env=False) as client:
        yield client


def metric(http, name, model="lm"):
    """Value of a metric of a model; 0: it has none."""
    lines = http.get("/metrics").text.splitlines()
    name = f'miniformer_{name}{{model="{model}"}} '
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)
