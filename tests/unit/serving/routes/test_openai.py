"""OpenAI's interface, used by OpenAI's client; answers are compared with the pipelines."""

import base64
import json
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

openai = pytest.importorskip("openai")

PROMPTS = ["", "a", "The cat sat", "x" * 40, "äöü 猫", "def f(x):\n    return"]
GREEDY = {"temperature": 0.0, "max_tokens": 12}


def expected(pipeline, prompt, **options):
    return pipeline.generate(prompt, max_new_tokens=12, **{"temperature": 0.0, **options})


@pytest.mark.catches("prompts_skip_a_token")
def test_a_greedy_completion_is_that_of_the_pipeline_alone_and_among_others(client, pipelines):
    want = [expected(pipelines["lm"], prompt) for prompt in PROMPTS]

    def complete(prompt):
        answer = client.completions.create(model="lm", prompt=prompt, **GREEDY)
        return answer.choices[0].text

    assert [complete(prompt) for prompt in PROMPTS] == want
    with ThreadPoolExecutor(12) as executor:
        assert [*executor.map(complete, PROMPTS * 4)] == want * 4


@pytest.mark.catches("copies_share_their_samples", "prompts_are_answered_in_reverse")
def test_several_prompts_and_copies_have_their_order(client, pipelines):
    answer = client.completions.create(model="lm", prompt=PROMPTS[1:4], n=2, seed=3, max_tokens=6)
    want = pipelines["lm"].generate(PROMPTS[1:4], num_return_sequences=2, seed=3, max_new_tokens=6)
    assert [choice.text for choice in answer.choices] == [text for row in want for text in row]
    assert [choice.index for choice in answer.choices] == list(range(6))


@pytest.mark.catches("usage_is_off_by_one", "stop_strings_are_not_passed_on")
def test_usage_counts_tokens_and_the_reason_is_length_or_stop(client, pipelines):
    tokenizer = pipelines["lm"].tokenizer
    answer = client.completions.create(model="lm", prompt="abc", **GREEDY)
    assert answer.usage.prompt_tokens == len(tokenizer.encode("abc")) + 1  # BOS
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.choices[0].finish_reason == "length"
    text = answer.choices[0].text
    stop = text[4:6]
    cut = client.completions.create(model="lm", prompt="abc", stop=stop, **GREEDY)
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    ids = pipelines["lm"].model.generate([[tokenizer.bos_id, 70]], 12, temperature=0.0)[0][2:]
    at_token = client.completions.create(
        model="lm", prompt=[tokenizer.bos_id, 70], extra_body={"stop_token_ids": [ids[3]]}, **GREEDY
    )
    assert at_token.choices[0].finish_reason == "stop"
    assert at_token.choices[0].text == tokenizer.decode(ids[: ids.index(ids[3])])


@pytest.mark.catches("streams_lose_held_back_text")
def test_streams_join_to_the_whole_answer(client, pipelines):
    for prompt in PROMPTS:
        stream = client.completions.create(
            model="lm", prompt=prompt, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
        chunks = [*stream]
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        assert text == expected(pipelines["lm"], prompt)
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 12
        reasons = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
        assert reasons == ["length"]


@pytest.mark.catches("top_tokens_are_not_normalized")
def test_log_probabilities_are_those_of_the_model(client, pipelines):
    answer = client.completions.create(model="lm", prompt="abc", logprobs=3, **GREEDY)
    ((_, output),) = pipelines["lm"].generate_outputs(["abc"], max_new_tokens=12, temperature=0.0)
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs == pytest.approx(output.logprobs, abs=1e-5)
    assert all(len(top) <= 3 for top in logprobs.top_logprobs)
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert max(top.values()) == pytest.approx(chosen, abs=1e-5)  # greedy


def test_echo_returns_the_prompt_first(client, pipelines):
    answer = client.completions.create(model="lm", prompt="abc", echo=True, **GREEDY)
    assert answer.choices[0].text == "abc" + expected(pipelines["lm"], "abc")
    stream = client.completions.create(model="lm", prompt="abc", echo=True, stream=True, **GREEDY)
    text = "".join(choice.text for chunk in stream for choice in chunk.choices)
    assert text == answer.choices[0].text


@pytest.mark.catches("biases_are_left_out")
def test_logit_bias_and_penalties_change_the_text(client, pipelines):
    tokenizer = pipelines["lm"].tokenizer
    token = tokenizer.encode("q")[0]
    answer = client.completions.create(
        model="lm", prompt="abc", logit_bias={str(token): 100}, **GREEDY
    )
    assert answer.choices[0].text == "q" * 12
    answer = client.completions.create(model="lm", prompt="abc", frequency_penalty=2.0, **GREEDY)
    assert answer.choices[0].text == expected(pipelines["lm"], "abc", frequency_penalty=2.0)


@pytest.mark.catches("templates_are_left_out", "templates_are_not_read")
def test_chat_renders_the_template_and_names_the_role(client, pipelines):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    prompt = "<system>Be brief.\n<user>hi\n<assistant>"
    tokenizer = pipelines["chat"].tokenizer
    ids = tokenizer.encode(prompt)
    new = pipelines["chat"].model.generate([ids], 12, temperature=0.0)[0][len(ids) :]
    answer = client.chat.completions.create(
        model="chat", messages=messages, logprobs=True, top_logprobs=2, **GREEDY
    )
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", tokenizer.decode(new))
    assert answer.usage.prompt_tokens == len(ids)
    assert len(answer.choices[0].logprobs.content) == 12
    assert all(len(item.top_logprobs) == 2 for item in answer.choices[0].logprobs.content)
    stream = client.chat.completions.create(model="chat", messages=messages, stream=True, **GREEDY)
    deltas = [choice.delta for chunk in stream for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == message.content


def test_an_answer_matches_a_json_schema(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    answer = client.chat.completions.create(
        model="chat", messages=[{"role": "user", "content": "?"}], temperature=0.0, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )  # fmt: skip
    assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)


def test_embeddings_are_those_of_the_pipeline(client, pipelines):
    texts = ["abc", "hgf ed"]
    want = pipelines["labels"].embed(texts)
    answer = client.embeddings.create(model="labels", input=texts, encoding_format="float")
    for item, row in zip(answer.data, want.tolist(), strict=True):
        assert item.embedding == pytest.approx(row, abs=1e-6)
    coded = client.embeddings.with_raw_response.create(
        model="labels", input=texts, encoding_format="base64"
    )
    raw = json.loads(coded.content)["data"][1]["embedding"]
    assert struct.unpack("<32f", base64.b64decode(raw)) == pytest.approx(want[1].tolist(), abs=1e-6)
    short = client.embeddings.create(
        model="labels", input="abc", dimensions=4, encoding_format="float"
    )
    first = want[0, :4] / want[0, :4].norm()
    assert short.data[0].embedding == pytest.approx(first.tolist(), abs=1e-5)


def test_models_are_listed_with_task_and_context(client):
    models = {item.id: item for item in client.models.list()}
    assert [*models] == ["lm", "chat", "labels", "mt"]
    assert models["labels"].task == "classification"
    assert client.models.retrieve("lm").context == 128


BAD = {
    "unknown field 'max_token' (did you mean 'max_tokens'?)": {"extra_body": {"max_token": 3}},
    "no model 'gpt'; served: lm, chat, labels, mt": {"model": "gpt"},
    "exceed the context of 128 tokens": {"max_tokens": 1000},
    "a model for classification; use /v1/classify": {"model": "labels"},
    "suffix is not supported": {"suffix": "x"},
    "token id 999 is not from 0 to 257": {"prompt": [1, 999]},
    "logit_bias: token id 'x'": {"logit_bias": {"x": 1}},
    "texts are above the server's limit of 64": {"n": 65},
    "best_of is not supported": {"best_of": 2},
    "temperature": {"temperature": -1},
    "prompt is empty": {"prompt": []},
}


@pytest.mark.catches("unknown_fields_have_no_hint")
@pytest.mark.parametrize("message", BAD)
def test_a_bad_request_has_one_message(client, message):
    request = {"model": "lm", "prompt": "abc", "max_tokens": 4, **BAD[message]}
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**request)
    assert message in caught.value.body["message"]
    assert caught.value.status_code == (404 if "no model" in message else 400)


def test_chat_with_a_base_model_says_what_to_do(client):
    with pytest.raises(openai.BadRequestError, match=r"without a chat template; use /v1/compl"):
        client.chat.completions.create(model="lm", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.catches("bytes_have_no_names")
def test_tokens_of_incomplete_characters_have_their_bytes(client, pipelines):
    ids = pipelines["lm"].tokenizer.encode("猫")
    bias = {str(ids[0]): 100}
    answer = client.completions.create(
        model="lm", prompt="a", logprobs=1, logit_bias=bias, temperature=0.0, max_tokens=1
    )
    assert answer.choices[0].logprobs.tokens == [f"bytes:\\x{'猫'.encode()[0]:02x}"]
