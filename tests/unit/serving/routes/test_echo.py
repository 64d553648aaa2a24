"""Completions with `echo` and `logprobs`, compared with the scores of the pipeline."""

import pytest

pytest.importorskip("openai")


@pytest.mark.catches("echoed_tokens_have_the_scores_of_their_neighbors")
def test_the_tokens_of_the_prompt_have_log_probabilities(client, pipelines):
    prompt = "the cat"
    options = {"max_tokens": 5, "temperature": 0.0, "logprobs": 2, "echo": True}
    (choice,) = client.completions.create(model="lm", prompt=prompt, **options).choices
    (score,) = pipelines["lm"].score([prompt])
    named_tokens = choice.logprobs
    assert named_tokens.token_logprobs[: len(score.tokens)] == pytest.approx(
        score.logprobs, abs=1e-4
    )
    assert "".join(named_tokens.tokens[: len(score.tokens)]) == prompt
    assert choice.text.startswith(prompt)
    assert len(named_tokens.tokens) == len(score.tokens) + 5
    assert [len(top) for top in named_tokens.top_logprobs] == [2] * len(named_tokens.tokens)
    assert named_tokens.text_offset[:8] == [*range(8)]
    stream = client.completions.create(model="lm", prompt=prompt, stream=True, **options)
    chunks = [chunk.choices[0] for chunk in stream]
    named = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert [name for item in named for name in item.tokens] == named_tokens.tokens
    assert [offset for item in named for offset in item.text_offset] == named_tokens.text_offset
    assert "".join(chunk.text for chunk in chunks) == choice.text


def test_the_first_token_of_ids_has_no_log_probability(client):
    options = {"max_tokens": 1, "logprobs": 1, "echo": True}
    (choice,) = client.completions.create(model="lm", prompt=[70, 71], **options).choices
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1] < 0


def test_a_source_has_no_log_probabilities(http):
    body = {"model": "mt", "prompt": "abc", "echo": True, "logprobs": 1}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert "gives its source no probability" in answer.json()["error"]["message"]
