"""Matrices get more bits until the loss holds a budget."""

import copy
import warnings

import pytest
import torch

import miniformer
from miniformer import cli
from miniformer.checkpoint.stored_types import Integers
from miniformer.compression.budget import check_other_data, fewest_steps, parse_budget
from miniformer.config import UserError
from tests.kit import write_jsonl
from tests.unit.compression.conftest import texts

RECORDS = [{"text": " ".join(texts(8, seed))} for seed in range(300, 330)]


def rounded(pipeline, bits_of):
    """The relative increase of the loss with these bits of matrices."""
    changed = copy.deepcopy(pipeline)
    with torch.no_grad():
        for name, bits in bits_of.items():
            if bits is not None:
                weight = changed.model.get_parameter(f"{name}.weight")
                weight.copy_(Integers.decode(Integers.encode(weight, bits=bits), bits=bits))
    losses = [x.evaluate(RECORDS, num_resamples=0).metrics["loss"] for x in (changed, pipeline)]
    return losses[0] / losses[1] - 1


@pytest.mark.catches("budget_raises_the_least_sensitive_first", "budget_is_exceeded_by_a_step")
def test_the_most_sensitive_matrices_get_more_bits_until_the_budget_holds(trained, tmp_path):
    plain = miniformer.quantize(trained, tmp_path / "plain", to="int4", data=RECORDS)
    increase = plain.losses[1] / plain.losses[0] - 1
    budget = 0.4 * increase
    result = miniformer.quantize(trained, tmp_path / "out", to="int4", data=RECORDS, budget=budget)
    assert result.losses[1] / result.losses[0] - 1 <= budget
    table = [row for row in result.table if row.name.startswith("layers.")]
    assert len(result.table) == plain.num_matrices
    sensitivities = [row.sensitivity for row in result.table]
    assert sensitivities == sorted(sensitivities, reverse=True)
    for row in (table[0], table[-1]):
        assert row.sensitivity == pytest.approx(rounded(trained, {row.name: 4}), abs=1e-6)
    bits = [row.bits for row in table]
    count = bits.count(8)
    assert bits == [8] * count + [4] * (len(bits) - count)
    assert count > 0
    fewer = {row.name: 8 if index < count - 1 else 4 for index, row in enumerate(table)}
    others = {row.name: row.bits for row in result.table if row not in table}
    assert rounded(trained, {**others, **fewer}) > budget
    stored = miniformer.load(tmp_path / "out").model.weight_storage
    assert {name: item["bits"] for name, item in stored.items()} == {
        row.name: row.bits for row in result.table
    }
    assert f"{table[0].name}" in str(result)


def test_a_budget_that_all_matrices_hold_changes_nothing(trained, tmp_path):
    miniformer.quantize(trained, tmp_path / "plain", to="int8")
    miniformer.quantize(trained, tmp_path / "out", to="int8", data=RECORDS, budget="50%")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "out")]
    assert files[0] == files[1]


@pytest.mark.catches("budget_holds_on_calibration_records")
def test_what_is_refused(trained, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    trained.save(tmp_path / "model")
    data = write_jsonl(tmp_path / "data.jsonl", [record["text"] for record in RECORDS] * 2)
    flags = ["quantize", str(tmp_path / "model"), str(out), "--to", "int4", "--data", str(data)]
    for same in (data, tmp_path / "d*.jsonl"):
        assert cli.main([*flags, "--calibrate", str(same), "--budget", "1%"]) == 2
        message = capsys.readouterr().err
        assert f"budget needs data that calibrate does not use; both have {data}" in message
    with monkeypatch.context() as patch:  # of this model, any budget has a solution by luck
        patch.setattr("miniformer.compression.budget.fewest_steps", lambda most, holds: most)
        assert cli.main([*flags, "--budget", "0.5%"]) == 2
    message = capsys.readouterr().err
    assert "no matrix can have fewer bits with a loss of 0.5 % more" in message
    assert "layers.0.attention.q_proj" in message
    assert "as it was" in message
    for budget in ("0.5", "-1%", "100%", "x%", 0, "nan%"):
        with pytest.raises(UserError, match="must be above 0 and below 100 %, such as"):
            miniformer.quantize(trained, out, to="int4", data=RECORDS, budget=budget)
    with pytest.raises(UserError, match="budget needs data"):
        miniformer.quantize(trained, out, to="int4", budget="1%")
    assert parse_budget("0.5%") == parse_budget(0.005)
    assert not out.exists()


@pytest.mark.catches("copies_of_calibration_records_hold_a_budget")
def test_records_under_another_name_are_noticed(trained, tmp_path):
    """Half of the records of one side or more are refused; fewer are named."""
    others = [" ".join(texts(8, seed)) for seed in range(900, 960)]
    calibrate = write_jsonl(tmp_path / "calibrate.jsonl", others)
    copied = [{"text": text, "id": index} for index, text in enumerate(others)]
    copy_path = write_jsonl(tmp_path / "copy.jsonl", others)
    for data, count in (
        (str(copy_path), "60 of 60"),
        (copied, "60 of 60"),
        ([*copied[:15], *RECORDS[:15]], "15 of 30"),
        ([*copied[:30], *RECORDS, *RECORDS], "30 of 90"),  # half of those of calibrate
    ):
        with pytest.raises(UserError, match=f"{count} records of data are also in calibrate"):
            check_other_data(trained, data, str(calibrate))
    with pytest.warns(UserWarning, match="1 of 31 records of data are also in calibrate"):
        check_other_data(trained, [copied[0], *RECORDS], str(calibrate))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_other_data(trained, RECORDS, str(calibrate))
    with pytest.raises(UserError, match="60 of 60 records of data are also in calibrate"):
        miniformer.quantize(
            trained, tmp_path / "out", to="int4", calibrate=str(calibrate), data=copied, budget="1%"
        )


def test_fewest_steps():
    for most in range(1, 9):
        for needed in range(most + 1):
            assert fewest_steps(most, lambda count, needed=needed: count >= needed) == needed
