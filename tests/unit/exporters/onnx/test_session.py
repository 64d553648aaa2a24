"""Graphs as a model: losses and comparisons of each kind of model.

The views of the model compute in place of onnxruntime; `check_onnx_battery.py` uses the real one.
"""

import json

import pytest

from miniformer import Seq2SeqTransformer, UserError, registry
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.evaluation.run_batches import BatchSettings, run_batches
from miniformer.exporters import verify
from miniformer.exporters.onnx.losses import check_data, data_loss
from miniformer.exporters.onnx.session import through_graphs
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import Source
from tests.kit import VERSE, tiny_model
from tests.kit.exports import torch_model

CASES = {
    "language_modeling": ({}, {}, [{"text": VERSE[n:]} for n in range(0, 60, 9)]),
    "seq2seq": (
        {},
        {"model": Seq2SeqTransformer, "causal": False},
        [{"source": VERSE[n : n + 9], "target": VERSE[n + 3 : n + 20]} for n in range(9)],
    ),
    "classification": (
        {"classes": ["a", "b"], "input_kind": "pair"},
        {"causal": False, "output_dim": 2, "token_types": 2},
        [{"input": [VERSE[:n], VERSE[n : n + 5]], "label": "ab"[n % 2]} for n in range(1, 9)],
    ),
    "token_classification": (
        {"classes": ["N", "V"]},
        {"causal": False, "output_dim": 2},
        [{"tokens": VERSE.split()[n : n + 5], "tags": ["N", "V", "N", "N", "V"]} for n in range(4)],
    ),
}


def a_source(name):
    settings, changes, _ = CASES[name]
    tokenizer = Tokenizer.train("byte", [VERSE])
    model = tiny_model(vocab_size=tokenizer.vocab_size, n_layers=1, max_seq_len=64, **changes)
    task = registry.get("task", name).from_dict(settings)
    return Source(model, tokenizer, task, None, None)


@pytest.mark.catches("loss_on_records_is_a_sum", "graphs_are_compared_without_a_mask")
@pytest.mark.parametrize("name", CASES)
def test_loss_of_graphs_is_that_of_the_model(name, tmp_path):
    source = a_source(name)
    check_data(source)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in CASES[name][2]))
    loss = data_loss(source, torch_model(source), str(path))
    records = as_records(str(path), source.task.schema)
    expected, _ = run_batches(
        source.model, source.task, source.tokenizer, records, BatchSettings(seq_len=64)
    )
    assert loss == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_comparison_of_each_kind_of_model(name):
    source = a_source(name)
    graphs, programs = torch_model(source), make_programs(source)
    runs = {program.name: graphs.run_of(program) for program in programs}
    result = verify.compare(source, programs, runs)
    result.check()
    assert result.difference < 1e-5
    count = 64 if "decoder" in runs else 0
    assert (result.num_greedy, result.num_equal) == (count, count)
    change_outputs(graphs)
    with pytest.raises(UserError, match=r"differs from the model by 5\.0e-01"):
        verify.compare(source, programs, runs).check()


def change_outputs(graphs):
    session = graphs.sessions.get("decoder") or graphs.sessions["model"]
    original = session.run

    def run(names, feeds):
        first, *rest = original(names, feeds)
        first[..., 0] += 0.5
        return [first, *rest]

    session.run = run


def test_tasks_of_a_pipeline_keep_their_own_logits():
    task = a_source("classification").task
    changed = through_graphs(task)
    assert "logits" in vars(changed)
    assert "logits" not in vars(task)
