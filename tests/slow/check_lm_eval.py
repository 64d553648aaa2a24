"""EleutherAI's lm-evaluation-harness loads a model directory and runs tasks of local files."""

import json
import math

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager

from miniformer.checkpoint.directory import save_directory
from miniformer.config import GenerationConfig
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
CHOICES = [
    {"q": "the cat", "a": [" sat", " ran away"], "gold": 0},
    {"q": "on", "a": [" a", " mat"], "gold": 1},
    {"q": "naïve ", "a": ["café", "tea"], "gold": 1},
]
TEXTS = ["the cat sat", "on the mat", "é"]
TASKS = {
    "choice": (
        CHOICES,
        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: a\n"
        "doc_to_target: gold\ntarget_delimiter: ''\nmetric_list: [{metric: acc}]",
    ),
    "perplexity": (
        [{"text": text} for text in TEXTS],
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]",
    ),
    "answer": (
        [{"q": text} for text in TEXTS],
        "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: ''\n"
        "generation_kwargs: {max_gen_toks: 7, do_sample: false, until: []}\n"
        "metric_list: [{metric: exact_match}]",
    ),
}  # fmt: skip


def model():
    return tiny_model(vocab_size=258, max_seq_len=64)


def log_p(before, text):
    """Natural log of the probability of a text after another, from one full forward pass."""
    ids = [BYTES.eos_id, *BYTES.encode(before + text)]
    first = len(ids) - len(BYTES.encode(text))
    with torch.no_grad():
        log_probs = model()(torch.tensor([ids]))[0].double().log_softmax(-1)
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(first, len(ids)))


def greedy(text, count):
    """Greedy continuation with a full forward pass for each byte."""
    ids = [BYTES.eos_id, *BYTES.encode(text)]
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model()(torch.tensor([ids]))[0, -1].argmax()))
    return BYTES.decode(ids[-count:])


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    save_directory(
        folder / "model", model=model(), tokenizer=BYTES, task=LanguageModeling().settings(),
        generation=GenerationConfig(), model_card="# x\n",
    )  # fmt: skip
    for name, (rows, settings) in TASKS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}\n{settings}\n"
        )
    import miniformer.interop.lm_eval  # noqa: F401 -- registers the model

    return lm_eval.simple_evaluate(
        model="miniformer", model_args=f"pretrained={folder / 'model'}", tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip


def samples(evaluation, task):
    return sorted(evaluation["samples"][task], key=lambda sample: sample["doc_id"])


def test_lm_eval_log_probabilities_of_choices(evaluation):
    right = []
    for row, sample in zip(CHOICES, samples(evaluation, "choice"), strict=True):
        prompt = row["q"].rstrip(
            " "
        )  # the harness and tokenizers move trailing spaces to the continuation
        log_probs = [log_p(prompt, row["q"][len(prompt) :] + text) for text in row["a"]]
        for (total, _), expected in zip(sample["filtered_resps"], log_probs, strict=True):
            assert float(total) == pytest.approx(expected, abs=1e-3)
        right.append(log_probs.index(max(log_probs)) == row["gold"])
    assert evaluation["results"]["choice"]["acc,none"] == pytest.approx(sum(right) / len(right))


def test_lm_eval_bits_per_byte(evaluation):
    totals = [log_p("", text) for text in TEXTS]
    for sample, expected in zip(samples(evaluation, "perplexity"), totals, strict=True):
        assert float(sample["filtered_resps"][0]) == pytest.approx(expected, abs=1e-3)
    bits = -sum(totals) / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    result = evaluation["results"]["perplexity"]
    assert result["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    assert result["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-4)


def test_lm_eval_greedy_answers_have_the_length_of_the_task(evaluation):
    for text, sample in zip(TEXTS, samples(evaluation, "answer"), strict=True):
        assert sample["resps"][0][0] == greedy(text, 7)
