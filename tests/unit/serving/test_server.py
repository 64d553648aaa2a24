"""Other tasks, limits, clients that leave, and the end of the server."""

import socket
import threading
import time

import pytest

from miniformer.config import ConfigError, UserError
from tests.unit.serving.conftest import language_model, metric, running

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")


@pytest.mark.catches("steps_count_as_tokens")
def test_metrics_count_the_tokens_of_all_sequences(http):
    before = metric(http, "generated_tokens_total")
    body = {"model": "lm", "prompt": ["a", "b", "c"], "max_tokens": 5, "temperature": 0}
    used = http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"]
    assert used == 15
    assert metric(http, "generated_tokens_total") - before == 15
    assert http.get("/ready").json() == {"status": "ready"}


@pytest.mark.catches("attention_begins_one_token_late")
def test_classes_and_translations_are_those_of_predict(http, pipelines):
    texts = ["abc", "hgf ed", "a"]
    answer = http.post("/v1/classify", json={"model": "labels", "input": texts}).json()
    for got, want in zip(answer["predictions"], pipelines["labels"].predict(texts), strict=True):
        assert got["label"] == want["label"]
        assert got["scores"] == pytest.approx(want["scores"], abs=1e-6)
    body = {"model": "mt", "input": "abc", "num_beams": 3, "n": 2}
    answer = http.post("/v1/translate", json={**body, "attention": True}).json()
    want = pipelines["mt"].generate("abc", num_beams=3, num_return_sequences=2)
    assert answer["predictions"] == [want]
    answer = http.post("/v1/translate", json={"model": "mt", "input": "abcb", "attention": True})
    (target,), attention = answer.json()["predictions"], answer.json()["attention"]
    weights = attention["weights"]
    assert target == pipelines["mt"].predict("abcb")
    assert "".join(attention["target"]) == target
    assert len(weights) == len(target)
    assert all(sum(row) == pytest.approx(1.0, abs=1e-3) for row in weights)
    completion = {"model": "mt", "prompt": "abc", "max_tokens": 8, "temperature": 0}
    choice = http.post("/v1/completions", json=completion).json()["choices"][0]
    assert choice["text"] == pipelines["mt"].generate("abc", max_new_tokens=8, temperature=0.0)


def test_score_and_tokens_are_those_of_the_pipeline(http, pipelines):
    answer = http.post("/v1/score", json={"model": "lm", "text": "hello"}).json()["scores"][0]
    (want,) = pipelines["lm"].score(["hello"])
    assert answer["tokens"] == want.tokens
    assert answer["logprobs"] == pytest.approx(want.logprobs, abs=1e-6)
    ids = http.post("/tokenize", json={"text": "héllo"}).json()["tokens"]
    assert ids == pipelines["lm"].tokenizer.encode("héllo")
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"text": "héllo"}


@pytest.mark.catches("long_inputs_are_truncated")
@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/classify", {"input": "a"}, "language_modeling; use /v1/completions"),
        ("/v1/regress", {"model": "labels", "input": "a"}, "use /v1/classify"),
        ("/v1/classify", {"model": "labels", "input": 3}, "input must be a text"),
        ("/v1/classify", {"model": "labels"}, "input"),
        ("/v1/embeddings", {"model": "mt", "input": "a"}, "seq2seq model has no vector"),
        ("/detokenize", {"tokens": [9999]}, "token id 9999"),
        ("/v1/score", {"model": "labels", "text": "a"}, "use /v1/classify"),
        ("/v1/classify", {"model": "labels", "input": "a" * 200}, "input"),
    ],
)
def test_a_wrong_endpoint_or_input_is_named(http, path, body, message):
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.catches("bodies_have_no_limit")
def test_broken_bodies_have_their_status(server, http):
    def status(content, **headers):
        headers = {"content-type": "application/json", **headers}
        return http.post("/v1/completions", content=content, headers=headers).status_code

    assert status(b'{"prompt":') == 400
    assert status(b"[1, 2]") == 400
    assert status(b"\xff\xfe") == 400
    assert status(b'{"prompt": "' + b"x" * 2_000_000 + b'"}') == 413
    assert http.get("/nothing").status_code == 404
    assert http.get("/v1/completions").status_code == 405


def leave(address, body):
    """Sends a request and leaves before its end."""
    with (
        httpx.Client(base_url=address, timeout=0.5, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        next(response.iter_lines())
        raise httpx.ReadTimeout("the client leaves")


@pytest.mark.catches("cancelled_rows_go_on")
def test_the_slot_of_a_client_that_leaves_is_free_within_a_second(pipelines):
    with running({"lm": language_model()}, slots=2) as (address, models):
        slow_down(models)
        worker = models.get("lm").worker
        body = {"prompt": "abc", "max_tokens": 100, "temperature": 0}
        for streamed in (True, False):
            with pytest.raises(httpx.ReadTimeout):
                leave(address, {**body, "stream": streamed})
            deadline = time.monotonic() + 3.0  # a second, and the load of a test machine
            while worker._running and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not worker._running, streamed
            assert worker._decoder.num_free == 2


def slow_down(models, seconds=0.06):
    """Makes the steps of a language model take some time, and its texts long."""
    model = models.get("lm")
    decoder = model.worker._decoder
    model.pipeline.generation = model.pipeline.generation.override({"eos_id": None})
    step = decoder.step

    def slow_step(limit):
        time.sleep(seconds)
        return step(limit)

    decoder.step = slow_step


@pytest.mark.catches("a_full_queue_takes_more")
def test_a_full_queue_gives_429_and_every_other_request_is_answered():
    with running({"lm": language_model()}, slots=1, queue=2) as (address, models):
        slow_down(models)
        body = {"prompt": "abc", "max_tokens": 10, "temperature": 0}
        answers = []

        def send():
            with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
                answers.append(client.post("/v1/completions", json=body))

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(answer.status_code for answer in answers)
        assert {*codes} == {200, 429}
        texts = {a.json()["choices"][0]["text"] for a in answers if a.status_code == 200}
        assert len(texts) == 1
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"


@pytest.mark.catches("keys_are_compared_by_their_start", "requests_have_no_guard")
def test_a_key_is_required_except_for_health(tmp_path):
    path = tmp_path / "keys"
    path.write_text("first-key\nsecond-key\n")
    with (
        running({"lm": language_model()}, api_key_file=str(path)) as (address, _),
        httpx.Client(base_url=address, timeout=30, trust_env=False) as http,
    ):
        assert http.get("/health").status_code == 200
        for key in (None, "first", "first-keyx", "x", "Second-key"):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            answer = http.get("/v1/models", headers=headers)
            assert answer.status_code == 401, key
            assert "API key" in answer.json()["error"]["message"]
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
        assert http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.catches("any_address_needs_no_key")
def test_settings_that_expose_the_server_need_a_key():
    from miniformer.serving.config import ServeConfig

    with pytest.raises(ConfigError, match=r"host=0\.0\.0\.0 is reachable"):
        ServeConfig(host="0.0.0.0")
    assert ServeConfig(host="0.0.0.0", insecure=True).slots == 8
    with pytest.raises(ConfigError, match="memory must be a size such as 2GB, not 'much'"):
        ServeConfig(memory="much")


@pytest.mark.catches("a_broken_model_is_the_clients_fault")
@pytest.mark.parametrize("part", ["all", "q_proj"])
def test_a_model_that_gives_nan_is_an_error_and_the_server_goes_on(part):
    broken = language_model()
    if part == "all":
        for parameter in broken.model.parameters():
            parameter.data.fill_(float("nan"))
    else:  # all scores of the attention are NaN
        broken.model.layers[0].attention.q_proj.weight.data.fill_(float("nan"))
    with (
        running({"bad": broken, "lm": language_model()}) as (address, _),
        httpx.Client(base_url=address, timeout=30, trust_env=False) as http,
    ):
        body = {"prompt": "abc", "max_tokens": 4, "temperature": 0}
        answer = http.post("/v1/completions", json={"model": "bad", **body})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert http.post("/v1/completions", json={"model": "lm", **body}).status_code == 200


@pytest.mark.catches("folders_do_not_name_models")
def test_a_single_model_is_named_after_its_folder(monkeypatch):
    from miniformer.serving import server

    served = []
    monkeypatch.setattr(server, "_serve", lambda named, config, listener: served.append(named))
    server.serve("runs/mt/best", port=0)
    assert served == [{"mt": "runs/mt/best"}]


@pytest.mark.catches("ctrl_c_of_a_server_is_an_interrupted_command")
def test_ctrl_c_ends_the_server_without_an_error(monkeypatch, capsys):
    """uvicorn ends the server at Ctrl-C, and raises KeyboardInterrupt again afterwards."""
    import uvicorn

    from miniformer.serving.server import serve

    def run(self, sockets):
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    try:
        serve(language_model(), port=0)
    except KeyboardInterrupt:  # would end the tests
        pytest.fail("Ctrl-C is an error")
    assert capsys.readouterr().out.endswith("Ctrl-C ends it\nserving has ended\n")


def test_a_taken_port_is_one_message(tmp_path):
    from miniformer.serving.server import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: .*choose another port"):
            serve(language_model(), port=port)


@pytest.mark.catches("a_request_of_many_texts_keeps_its_turn")
def test_requests_of_many_texts_take_turns():
    from miniformer.serving.scheduling.jobs import FairQueue, Job

    queue = FairQueue(6)
    many, single = [Job(1, None) for _ in range(3)], Job(2, None)
    assert queue.push(many)
    assert queue.push([single])
    assert not queue.push([Job(3, None) for _ in range(3)])
    assert [*iter(queue.pop, None)] == [many[0], single, many[1], many[2]]
    queue.push(many)
    many[1].cancel()
    assert [*iter(queue.pop, None)] == [many[0], many[2]]


@pytest.mark.catches("names_of_models_may_repeat")
def test_models_are_named_after_their_folders():
    from miniformer.serving.models import parse_names

    assert parse_names(["runs/mt/best", "b=other/mt"]) == {"mt": "runs/mt/best", "b": "other/mt"}
    with pytest.raises(UserError, match="two models are named 'mt'; name them: NAME="):
        parse_names(["runs/mt/best", "runs/mt"])


@pytest.mark.catches("memory_does_not_limit_slots")
def test_memory_limits_the_slots():
    from miniformer.serving.config import ServeConfig
    from miniformer.serving.scheduling.worker import num_slots

    config = language_model().model.config  # 2 layers, keys and values of 32 numbers, 128 columns
    size = 2 * 2 * 32 * 4 * 128
    assert num_slots(config, ServeConfig(slots=8, memory=f"{6 * size}")) == 5
    assert num_slots(config, ServeConfig(slots=3, memory=f"{6 * size}")) == 3
    with pytest.raises(UserError, match="less than two sequences of 0 MB; raise memory"):
        num_slots(config, ServeConfig(memory=f"{size}"))
