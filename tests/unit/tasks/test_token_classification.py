"""Token classification against plain code, seqeval and scikit-learn."""

import json
import re
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as macro_f1_score

from miniformer import Pipeline
from miniformer.config import GenerationConfig, InputError, NoEffectWarning, UserError
from miniformer.data.reading.records import RecordError, as_records
from miniformer.data.rules import fit_task
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.tagging.schemes import find_spans, invalid_tag
from miniformer.tasks.tagging.span_metrics import OUTSIDE_BIASES
from miniformer.tasks.token_classification import TokenClassification
from tests.kit import tiny_model
from tests.kit.tasks import batches_of

NAMES = ["Anna", "Bo", "Carla", "Dan"]
RANDOM = np.random.default_rng(0)


def sentence(length):
    """Words, some of them names of one or two words, with their IOB2 tags."""
    tokens, tags = [], []
    while len(tokens) < length:
        if RANDOM.random() < 0.3:
            names = list(RANDOM.choice(NAMES, RANDOM.integers(1, 3)))
            tokens += names
            tags += ["B-PER", "I-PER"][: len(names)]
        else:
            tokens.append("".join(RANDOM.choice(list("xyz"), 3)))
            tags.append("O" if RANDOM.random() < 0.9 else "B-LOC")
    return {"tokens": tokens, "tags": tags}


SENTENCES = [sentence(int(length)) for length in RANDOM.integers(1, 9, 24)]
POS = [
    {"tokens": record["tokens"], "tags": [len(t) for t in record["tokens"]]} for record in SENTENCES
]
BPE = Tokenizer.train("bpe", [" " + " ".join(r["tokens"]) for r in SENTENCES], 300)
CHARS = Tokenizer.train("char", [" ".join(r["tokens"]) for r in SENTENCES])


def fitted(records=SENTENCES, **options):
    task = TokenClassification(**options)
    return task.fit(as_records(records, task.schema))


def model_for(task, tokenizer=CHARS, **changes):
    fields = {"max_seq_len": 48, "causal": False, **changes}
    return tiny_model(**{**fields, **task.model_config({}, tokenizer)})


def served(task, records, tokenizer=CHARS, **options):
    return batches_of(task, records, tokenizer, **{"seq_len": 48, "batch_size": 4, **options})


@torch.no_grad()
def plain_logits(model, task, tokenizer, tokens):
    """Logits of each word of one input that fits into a window: [W, C], in plain loops."""
    ids, parts = [*tokenizer.input_template.prefix], []
    for token in tokens:
        spaced = tokenizer.encode(" " + token)
        is_space_apart = spaced == [*tokenizer.encode(" "), *tokenizer.encode(token)]
        parts.append((len(ids) + is_space_apart, len(ids) + len(spaced)))
        ids += spaced
    features = model.features(torch.tensor([ids]))[0]
    reduce = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0)}
    vectors = [reduce[task.word_pooling](features[start:end]) for start, end in parts]
    return model.logits(torch.stack(vectors))


@pytest.mark.catches("context_of_padding_changes_tags")
@pytest.mark.catches("smoothed_validation_of_tags")
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("tokenizer", [CHARS, BPE], ids=["char", "bpe"])
@torch.no_grad()
def test_loss_of_batches_matches_single_words(tokenizer, pooling):
    task = fitted(word_pooling=pooling, label_smoothing=0.2)
    model = model_for(task, tokenizer)
    expected = 0.0
    for record in SENTENCES:
        labels = torch.tensor([task.classes.index(tag) for tag in record["tags"]])
        logits = plain_logits(model, task, tokenizer, record["tokens"])
        expected += float(F.cross_entropy(logits, labels, reduction="sum"))
    losses = [task.loss(model, batch) for batch in served(task, SENTENCES, tokenizer)]
    assert sum(int(count) for _, count in losses) == sum(len(r["tags"]) for r in SENTENCES)
    total = sum(float(loss) for loss, _ in losses)
    assert total == pytest.approx(expected, rel=1e-5)
    model.train()  # without dropout: only the smoothing differs
    smoothed = sum(float(task.loss(model, b)[0]) for b in served(task, SENTENCES, tokenizer))
    assert smoothed != pytest.approx(expected, rel=1e-3)


def evaluate(task, model, records, tokenizer=CHARS, **options):
    """Metrics of a validation, and their statistics."""
    with torch.inference_mode():
        stats = [task.eval_step(model, b) for b in served(task, records, tokenizer, **options)]
    return task.compute_metrics(stats), stats


def predict(task, model, inputs, tokenizer=CHARS, **options):
    return task.predict(model, tokenizer, inputs, GenerationConfig(), **options)


@pytest.mark.catches("validation_ignores_the_scheme")
@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_metrics_match_seqeval_and_sklearn_on_predictions(valid, strict):
    task = fitted(valid_predictions=valid, strict_spans=strict)
    model = model_for(task)
    metrics, stats = evaluate(task, model, SENTENCES)
    truths = [record["tags"] for record in SENTENCES]
    predictions = [x["tags"] for x in predict(task, model, [r["tokens"] for r in SENTENCES])]
    assert all(invalid_tag(tags, "iob2") is None for tags in predictions) == valid
    mode = {"mode": "strict", "scheme": IOB2} if strict else {}
    flat = [[*chain(*rows)] for rows in (truths, predictions)]
    expected = {
        "accuracy": accuracy_score(*flat),
        "macro_f1": macro_f1_score(*flat, average="macro"),
        "span_precision": precision_score(truths, predictions, **mode),
        "span_recall": recall_score(truths, predictions, **mode),
        "span_f1": f1_score(truths, predictions, **mode),
    }
    assert 0 < expected["span_f1"] < 1
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    loss = sum(float(x["loss"]) for x in stats) / sum(float(x["count"]) for x in stats)
    assert metrics["loss"] == pytest.approx(loss)
    losses = np.concatenate([x["losses"] for x in stats])
    assert losses.mean() == pytest.approx(loss, rel=1e-5)


@pytest.mark.catches("every_outside_bias_is_the_first")
@pytest.mark.parametrize("valid", [True, False])
def test_predictions_of_every_outside_bias_are_those_of_the_option(valid):
    """In long inputs, too, where windows begin and end within a sequence."""
    long = {name: [*chain(*(r[name] for r in SENTENCES))] for name in ("tokens", "tags")}
    task = fitted(valid_predictions=valid)
    model = model_for(task)
    _, stats = evaluate(task, model, [*SENTENCES, long])
    biased = torch.cat([batch["biased_predictions"] for batch in stats])
    assert biased.shape[1] == len(OUTSIDE_BIASES)
    for column, bias in enumerate(OUTSIDE_BIASES):
        given = fitted(valid_predictions=valid, outside_bias=bias)
        _, stats = evaluate(given, model, [*SENTENCES, long])
        predictions = torch.cat([batch["predictions"] for batch in stats])
        assert predictions.tolist() == biased[:, column].tolist(), bias
    assert biased[:, 0].tolist() != biased[:, -1].tolist()


@pytest.mark.catches("windows_are_sequences_of_their_own")
def test_metrics_and_predictions_of_long_inputs_are_the_same():
    """Records of several windows count as one sequence; all tokens have a tag."""
    joined = [
        {
            name: [*chain(*(record[name] for record in SENTENCES[n : n + 6]))]
            for name in ("tokens", "tags")
        }
        for n in range(0, 24, 6)
    ]
    task = fitted()
    model = model_for(task, max_seq_len=24)
    batches = served(task, joined, seq_len=24)
    assert sum(len(batch["inputs"]) for batch in batches) > len(joined)
    metrics, _ = evaluate(task, model, joined, seq_len=24)
    answers = predict(task, model, [record["tokens"] for record in joined])
    predictions = [answer["tags"] for answer in answers]
    assert [len(tags) for tags in predictions] == [len(record["tags"]) for record in joined]
    assert all(invalid_tag(tags, "iob2") is None for tags in predictions)
    truths = [record["tags"] for record in joined]
    assert metrics["span_f1"] == pytest.approx(f1_score(truths, predictions))
    assert metrics["accuracy"] == pytest.approx(
        accuracy_score([*chain(*truths)], [*chain(*predictions)])
    )


def test_tags_without_a_scheme_have_no_span_metrics():
    task = fitted(POS)
    assert (task.scheme, task.has_spans) == ("none", False)
    assert task.classes == sorted({tag for record in POS for tag in record["tags"]})
    assert task.metrics[0] == "accuracy"
    metrics, stats = evaluate(task, model_for(task), POS)
    assert set(metrics) == set(task.metrics) == {"accuracy", "macro_f1", "loss"}
    rows = task.report_markdown(stats).splitlines()
    assert rows[0].startswith("| tag |")
    assert len(rows) == 2 + len(task.classes)
    supports = [int(row.split("|")[5]) for row in rows[2:]]
    tags = [tag for record in POS for tag in record["tags"]]
    assert supports == [tags.count(tag) for tag in task.classes]


def test_report_lists_types_of_spans(tmp_path):
    task = fitted()
    assert task.metrics[0] == "span_f1"
    _, stats = evaluate(task, model_for(task), SENTENCES)
    rows = task.report_markdown(stats).splitlines()
    assert rows[0] == "| type | precision | recall | F1 | spans |"
    spans = [span for record in SENTENCES for span in find_spans(record["tags"], "iob2")]
    for row, kind in zip(rows[2:], ("LOC", "PER"), strict=True):
        assert row.startswith(f"| {kind} |")
        assert int(row.split("|")[5]) == sum(span.type == kind for span in spans)
    assert task.plot(stats, tmp_path / "plot.png")


@pytest.mark.catches("rare_inside_tag_is_unknown")
def test_fit_derives_tags_scheme_and_counts():
    task = fitted([{"tokens": ["a", "b"], "tags": ["B-x", "O"]}, {"tokens": ["a"], "tags": ["O"]}])
    assert (task.classes, task.scheme) == (["B-x", "I-x", "O"], "iob2")
    assert task.class_counts == [1, 0, 2]
    assert fitted(SENTENCES, scheme="none").has_spans is False
    given = fitted(SENTENCES, classes=["O", "B-PER", "I-PER", "B-LOC"])
    assert given.classes == ["O", "B-PER", "I-PER", "B-LOC"]
    assert TokenClassification(classes=["B-x", "O"]).resolved_scheme == "iob2"
    assert TokenClassification(classes=["NOUN", "O"]).resolved_scheme == "none"
    assert TokenClassification().has_spans is None
    assert TokenClassification().metrics[0] == "span_f1"
    assert "accuracy" in TokenClassification().metrics


@pytest.mark.catches("rare_tags_are_not_announced")
def test_warnings_name_similar_and_rare_tags(tmp_path):
    records = [{"tokens": list("abcd"), "tags": ["x", "x ", "y", "y"]}, *POS[:0]]
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(records[0]) + "\n")
    data = as_records(str(path), TokenClassification().schema)
    task = TokenClassification().fit(data)
    (similar,) = task.data_warnings()
    assert "tags 'x' and 'x ' differ only by spaces" in similar
    (rare,) = task.record_warnings(data)
    assert f"tags that occur once: 'x' ({path}:1, token 1), 'x ' ({path}:1, token 2)" in rare
    assert list(fitted().record_warnings(as_records(SENTENCES))) == []


PROBLEMS = {
    "unequal": ({"tokens": ["a", "b"], "tags": ["O"]}, "'tags' has 1 tags, but there are 2 tokens"),
    "no list": (
        {"tokens": "a b", "tags": ["O"]},
        "'tokens' must be a list of tokens, not a string",
    ),
    "none": ({"tokens": [], "tags": []}, "'tokens' is an empty list; leave the record out"),
    "empty": ({"tokens": ["a", ""], "tags": ["O", "O"]}, "'tokens' has an empty string as token 2"),
    "number": ({"tokens": ["a", 3], "tags": ["O", "O"]}, "'tokens' has an integer as token 2"),
    "no tags": ({"tokens": ["a"], "tags": "O"}, "'tags' must be a list of tags, not a string"),
    "null": ({"tokens": ["a"], "tags": [None]}, "'tags' has a tag at token 1 that is null"),
    "missing": ({"tokens": ["a"]}, "the record has no 'tags' .*it has 'tokens'"),
    "surrogate": ({"tokens": ["\ud800"], "tags": ["O"]}, "half of a surrogate pair"),
    "BIO": (
        {"tokens": ["a", "b"], "tags": ["O", "I-PER"]},
        "'tags' has 'I-PER' at token 2 after 'O'; in IOB2 .* use B-PER; or set check_tags=false",
    ),
    "mixed": ({"tokens": ["a"], "tags": [3]}, "'tags' has names where others are numbers"),
}


@pytest.mark.catches("unequal_tags_pass")
@pytest.mark.catches("inside_tag_may_follow_another_type")
@pytest.mark.parametrize("name", PROBLEMS)
def test_invalid_training_records_are_errors_with_their_line(name, tmp_path):
    record, problem = PROBLEMS[name]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*SENTENCES, record]))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}:25: .*{problem}"):
        fit_task(TokenClassification(), as_records(str(path), TokenClassification().schema))


@pytest.mark.catches("tags_that_training_never_saw_pass")
def test_validation_tags_are_those_of_training(tmp_path):
    path = tmp_path / "val.jsonl"
    task = fitted()
    cases = {
        "B-ORG": "'tags' has 'B-ORG' at token 1, which is none of the tags trained on: 'B-LOC', ",
        "I-PER": "'tags' has 'I-PER' at token 1 at the start; in IOB2",
    }
    for tag, problem in cases.items():
        path.write_text(json.dumps({"tokens": ["a"], "tags": [tag]}) + "\n")
        with pytest.raises(RecordError, match=f"val.jsonl:1: {problem}"):
            list(as_records(str(path), task.schema))
    path.write_text(json.dumps({"tokens": ["a"], "tags": ["I-LOC"]}) + "\n")
    lenient = fitted(check_tags=False)
    assert len(list(as_records(str(path), lenient.schema))) == 1


def test_unchecked_tags_are_read_as_in_the_default_mode_of_seqeval():
    records = [*SENTENCES, {"tokens": ["a", "b"], "tags": ["O", "I-PER"]}]
    task = fitted(records, check_tags=False)
    assert task.scheme == "iob2"
    model = model_for(task)
    metrics, _ = evaluate(task, model, records)
    predictions = [x["tags"] for x in predict(task, model, [r["tokens"] for r in records])]
    assert metrics["span_f1"] == pytest.approx(f1_score([r["tags"] for r in records], predictions))


def test_data_with_one_tag_is_refused():
    with pytest.raises(UserError, match="every tag is 'O'; there must be two or more"):
        fitted([{"tokens": ["a"], "tags": ["O"]}])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"classes": ["a"]}, "classes must be two or more"),
        ({"classes": ["a", 1]}, "classes must be all names or all integers"),
        ({"classes": ["a", "a"]}, "classes must differ"),
        ({"classes": [None, "a"]}, "classes must be names or integers, not None"),
        ({"class_counts": [1, 2]}, "class_counts needs one number for each of the classes"),
        ({"scheme": "bio"}, "scheme must be one of"),
        ({"word_pooling": "max"}, "word_pooling must be one of first, last, mean"),
    ],
)
def test_invalid_options_are_errors(options, problem):
    with pytest.raises(UserError, match=problem):
        TokenClassification.from_dict(options)


@pytest.mark.catches("entities_end_with_their_last_token")
def test_predictions_have_tokens_scores_and_entities():
    task = fitted()
    model = model_for(task)
    texts = [" ".join(record["tokens"]) for record in SENTENCES]
    answers = predict(task, model, texts)
    assert answers == predict(task, model, [record["tokens"] for record in SENTENCES])
    singles = [answer for text in texts for answer in predict(task, model, (text,))]
    for answer, single, record in zip(answers, singles, SENTENCES, strict=True):
        assert answer["tokens"] == record["tokens"]
        assert answer["tags"] == single["tags"]
        assert answer["scores"] == pytest.approx(single["scores"], abs=1e-5)
        logits = plain_logits(model, task, CHARS, record["tokens"])
        rows = zip(logits.softmax(-1), answer["tags"], strict=True)
        expected = [float(row[task.classes.index(tag)]) for row, tag in rows]
        assert answer["scores"] == pytest.approx(expected, abs=1e-5)
        spans = find_spans(answer["tags"], "iob2")
        assert len(spans) == len(answer["entities"])
        for span, entity in zip(spans, answer["entities"], strict=True):
            part = slice(entity["start"], entity["end"])
            assert entity["text"] == " ".join(record["tokens"][part])
            score = sum(answer["scores"][part]) / (span.end - span.start)
            assert entity == {
                "type": span.type, "start": span.start, "end": span.end,
                "text": entity["text"], "score": pytest.approx(score),
            }  # fmt: skip
    assert sum(len(answer["entities"]) for answer in answers) > 0
    assert "entities" not in predict(fitted(POS), model_for(fitted(POS)), ["a b"])[0]


@pytest.mark.catches("sentences_are_tagged_as_tokens")
def test_pipeline_takes_a_list_of_strings_as_the_tokens_of_one_input():
    task = fitted()
    pipeline = Pipeline(model_for(task), CHARS, task)
    answer = pipeline.predict("ab ba")
    assert answer["tokens"] == ["ab", "ba"]
    assert pipeline.predict(["ab", "ba"]) == pipeline.predict(("ab", "ba")) == answer
    assert pipeline.predict([["ab", "ba"]]) == [answer]
    answers = pipeline.predict([["ab", "ba"], ["a"]])
    assert [answer["tokens"] for answer in answers] == [["ab", "ba"], ["a"]]
    with pytest.raises(UserError) as error:
        pipeline.predict(["a", "ab ba"])
    assert str(error.value) == (
        "a list of strings is the tokens of one input, and token 2 has whitespace: 'ab ba'; for "
        "several texts use predict_all(texts), for tokens with whitespace predict([tokens])"
    )
    texts = pipeline.predict_all(["a", "ab ba"])
    assert [answer["tokens"] for answer in texts] == [["a"], ["ab", "ba"]]
    assert pipeline.predict([["a", "ab ba"]])[0]["tokens"] == ["a", "ab ba"]
    assert pipeline.predict([]) == []


def test_predictions_of_unusual_inputs():
    task = fitted()
    model = model_for(task)
    empty = {"tokens": [], "tags": [], "scores": [], "entities": []}
    assert predict(task, model, ["", []]) == [empty, empty]
    assert predict(task, model, []) == []
    assert predict(task, model, [("a", "b")])[0]["tokens"] == ["a", "b"]
    with pytest.raises(InputError) as error:
        predict(task, model, ["a", 3, ["a", ""], ["a", None]])
    assert error.value.problems == {
        1: "must be a list of tokens, not an integer; an input is a text or a list of tokens",
        2: "has an empty string as token 2; leave it out, and its tag; an input is a text or a "
        "list of tokens",
        3: "has null as token 2; each must be a string; an input is a text or a list of tokens",
    }
    with pytest.warns(NoEffectWarning, match="truncate has no effect"):
        predict(task, model, ["a"], truncate=True)


@pytest.mark.catches("dropped_merges_move_words")
def test_bpe_dropout_leaves_words_aligned():
    task = fitted(bpe_dropout=0.8)
    model = model_for(task, BPE)
    task.check(model.config, BPE)
    plain = served(task, SENTENCES, BPE)
    dropped = served(task, SENTENCES, BPE, training=True)
    assert sum(b["inputs"].numel() for b in dropped) > sum(b["inputs"].numel() for b in plain)

    def words_of(batches):
        """Text and label of each word, in any order."""
        rows = []
        for batch in batches:
            for row in range(len(batch["inputs"])):
                ids, labels = batch["inputs"][row].tolist(), batch["labels"][row].tolist()
                starts, lengths = (batch[f"word_{x}"][row].tolist() for x in ("starts", "lengths"))
                for start, length, label in zip(starts, lengths, labels, strict=True):
                    rows.append((BPE.decode(ids[start : start + length]), label))
        return sorted(rows)

    assert words_of(dropped) == words_of(plain)
    with pytest.raises(UserError, match="bpe_dropout undoes merges of a bpe tokenizer"):
        task.check(model.config, CHARS)


def test_model_config_must_fit():
    task = fitted()
    model = model_for(task)
    task.check(model.config, CHARS)
    for changes, problem in (
        ({"output_dim": 9}, "output_dim must be 5 for this data, not 9"),
        ({"input_dim": 3}, "input_dim must be null for this data, not 3"),
        ({"max_seq_len": 1}, "max_seq_len must be at least 2 for words"),
    ):
        with pytest.raises(UserError, match=problem):
            task.check(type(model.config).from_dict({**model.config.to_dict(), **changes}), CHARS)


def test_transitions_of_training_are_all_checked():
    """A tag that is wrong in the last record of many is found."""
    records = [*SENTENCES, {"tokens": ["a", "b"], "tags": ["B-PER", "I-LOC"]}]
    pairs = {pair for record in records for pair in pairwise(record["tags"])}
    assert ("B-PER", "I-LOC") in pairs
    with pytest.raises(UserError, match="record 24: 'tags' has 'I-LOC' at token 2 after 'B-PER'"):
        fitted(records)
