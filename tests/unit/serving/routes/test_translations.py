"""Streamed translations are those of the pipeline."""

import json

import pytest

from tests.unit.serving.conftest import metric

pytest.importorskip("fastapi")


def events(http, body):
    with http.stream("POST", "/v1/translate", json=body) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.catches("streamed_translations_lose_their_source")
def test_a_greedy_translation_comes_in_pieces(http, pipelines):
    texts = ["abc", "hgf ed"]
    deltas = events(http, {"model": "mt", "input": texts, "stream": True})
    assert len(deltas) >= 2
    for index, text in enumerate(texts):
        own = [delta for delta in deltas if delta["index"] == index]
        assert "".join(delta["text"] for delta in own) == pipelines["mt"].predict(text)
        assert [delta["finish_reason"] for delta in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] in {"stop", "length"}


@pytest.mark.catches("whole_translations_are_calls")
def test_a_whole_translation_is_decoded_in_slots(http, pipelines):
    before = metric(http, "generated_tokens_total", "mt")
    texts = ["abc", "hgf ed", "b"]
    answer = http.post("/v1/translate", json={"model": "mt", "input": texts}).json()
    assert answer["predictions"] == pipelines["mt"].generate(texts)
    assert metric(http, "generated_tokens_total", "mt") > before
    answer = http.post("/v1/translate", json={"model": "mt", "input": ["a"] * 65})
    assert answer.status_code == 400
    assert "above the server's limit of 64" in answer.json()["error"]["message"]


def test_the_best_of_a_search_come_by_rank(http, pipelines):
    body = {"model": "mt", "input": ["abc", "b"], "num_beams": 3, "n": 2, "stream": True}
    want = pipelines["mt"].generate(["abc", "b"], num_beams=3, num_return_sequences=2)
    got = [(item["index"], item["rank"], item["text"]) for item in events(http, body)]
    assert got == [(n, rank, text) for n, row in enumerate(want) for rank, text in enumerate(row)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "lm", "input": "a"}, "use /v1/completions"),
        ({"model": "mt", "input": [1]}, "a stream needs texts"),
        ({"model": "mt", "input": "a", "attention": True}, "attention is not streamed"),
        ({"model": "mt", "input": ["a"] * 33, "n": 2}, "above the server's limit of 64"),
    ],
)
def test_wrong_streams_are_refused_before_they_begin(http, body, message):
    answer = http.post("/v1/translate", json={**body, "stream": True})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


LONG = "ab" * 100


@pytest.mark.catches("errors_of_translations_name_a_prompt")
@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": LONG}, "input", "input is 73 tokens longer than the model reads"),
        ({"input": ["ab", LONG]}, "input", "input[1] is 73 tokens longer than the model reads"),
        ({"input": LONG, "stream": True}, "input", "input is 73 tokens longer"),
        ({"input": ["a", LONG], "num_beams": 2}, "input", "input: input 1 is 73 tokens longer"),
        (
            {"input": ["a", LONG], "num_beams": 2, "stream": True}, None,
            "input: input 1 is 73 tokens longer",
        ),
        ({"input": [1]}, "input", "input: input 0 must be a string, not 1"),
        ({"input": "a", "max_tokens": 200}, "max_tokens", "max_tokens=200 is above the 127 tokens"),
    ],
)  # fmt: skip
def test_errors_of_translations_name_their_field(http, body, param, message):
    answer = http.post("/v1/translate", json={"model": "mt", **body})
    if param is None:  # the event that follows the translation of the first source
        events = [line for line in answer.text.splitlines() if "error" in line]
        (error,) = (json.loads(line.removeprefix("data: "))["error"] for line in events)
        param = "input"
    else:
        assert answer.status_code == 400
        error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(message)
