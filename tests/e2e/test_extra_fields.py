"""Fields of records beyond the schema reach the metrics of validation and of `evaluate`."""

import dataclasses
from typing import ClassVar

import pytest

import miniformer
from miniformer import registry
from miniformer.config import UserError
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}


def count_by_source(batch_stats):
    """Rows, or labels of packed windows, of each source, by a loop."""
    counts = {}
    for stats in batch_stats:
        for index in stats["records"].flatten().tolist():
            name = f"rows_{stats['fields']['source'][index]}"
            counts[name] = counts.get(name, 0) + 1
    return counts


@dataclasses.dataclass(frozen=True)
class ClassesBySource(Classification):
    name: ClassVar[str] = "classes_by_source"
    extra_fields: ClassVar[tuple[str, ...]] = ("source",)

    def compute_metrics(self, batch_stats, tokenizer=None):
        return {**super().compute_metrics(batch_stats, tokenizer), **count_by_source(batch_stats)}


@dataclasses.dataclass(frozen=True)
class TextsBySource(LanguageModeling):
    name: ClassVar[str] = "texts_by_source"
    extra_fields: ClassVar[tuple[str, ...]] = ("source",)

    def compute_metrics(self, batch_stats, tokenizer=None):
        return {**super().compute_metrics(batch_stats, tokenizer), **count_by_source(batch_stats)}


@pytest.fixture(autouse=True)
def tasks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tasks = {"classes_by_source": ClassesBySource, "texts_by_source": TextsBySource}
    monkeypatch.setitem(registry._registered, "task", tasks)


def options(task):
    return {
        "task": task, "max_steps": 2, "val_check_interval": 1, "model_config": MODEL,
        "tokenizer": "byte", "precision": "float32", "logger": "none", "seq_len": 8,
        "batch_size": 4, "quiet": True, "wide_head": "off",
    }  # fmt: skip


@pytest.mark.catches("fields_of_records_are_those_of_the_first")
def test_extra_fields_reach_metrics_of_validation_and_evaluate():
    rows = [
        {"input": "abc"[: 1 + n % 3], "label": n % 2, "source": "ab"[n % 5 == 0]} for n in range(20)
    ]
    result = miniformer.train(rows, val=rows, **options("classes_by_source"))
    assert result.metrics["val_rows_a"] == 16
    assert result.metrics["val_rows_b"] == 4
    evaluation = miniformer.load(result.model).evaluate(rows)
    assert evaluation.metrics["rows_a"] == 16
    assert evaluation.metrics["rows_b"] == 4


def test_extra_fields_of_packed_windows_belong_to_labels():
    rows = [{"text": "abcdef"[: 1 + n % 6], "source": "ab"[n % 2]} for n in range(10)]
    result = miniformer.train(rows, val=rows, **options("texts_by_source"))
    counts = {s: sum(len(r["text"]) + 1 for r in rows if r["source"] == s) for s in "ab"}
    padding = -sum(counts.values()) % 8  # belongs to the last record
    assert result.metrics["val_rows_a"] == counts["a"]
    assert result.metrics["val_rows_b"] == counts["b"] + padding
    del rows[3]["source"]
    with pytest.raises(UserError, match="record 3: the record has no 'source', which the metrics"):
        miniformer.train(rows, val=rows, **options("texts_by_source"))
