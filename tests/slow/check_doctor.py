"""All checks of `miniformer doctor` pass on a model of every task and of every imported family.

`python -m tests.slow doctor` runs it; tests/unit/doctor has the broken models.
"""

import pytest

import miniformer
from miniformer import registry
from miniformer.doctor.run_checks import run_checks
from miniformer.doctor.subject import Subject
from miniformer.interop.hf.families import ALL_FAMILIES
from tests.parity import published
from tests.parity.test_hugging_face import share_tables
from tests.parity.test_hugging_face_texts import LABELS, random_model
from tests.unit.doctor.cases import CASES, make_pipeline

pytestmark = pytest.mark.filterwarnings("default")
CHECKS = registry.builtin_names("check")
# Each class of each family.
IMPORTED = [
    pytest.param(name, family.preset, model_class, id=f"{family.preset}-{name}")
    for family in ALL_FAMILIES
    for name, model_class in family.model_classes.items()
]


def problems(directory, names=CHECKS):
    outcomes = list(run_checks(Subject(directory), names))
    assert any(outcome.status == "passed" for outcome in outcomes)
    return {outcome.name: outcome.problems for outcome in outcomes if outcome.problems}


@pytest.mark.parametrize("case", CASES)
def test_all_checks_pass_on_a_model_of_each_kind_of_input(case, tmp_path):
    make_pipeline(case).save(tmp_path / "model")
    assert problems(tmp_path / "model") == {}


def test_families_are_those_of_the_page():
    assert {item.values[1] for item in IMPORTED} == set(published.FAMILIES)


@pytest.mark.parametrize(("name", "family", "model_class"), IMPORTED)
def test_checks_pass_on_an_imported_model(name, family, model_class, tmp_path):
    """A tiny random model of transformers with values of its config drawn at random."""
    options = {}
    if model_class.is_classifier or model_class.per_token:
        labels = {0: "O", 1: "B-x", 2: "I-x"} if model_class.per_token else LABELS
        options = {"id2label": labels, "label2id": {label: n for n, label in labels.items()}}
    theirs = random_model(name, family, **options)
    share_tables(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    miniformer.import_hf(tmp_path / "theirs", tmp_path / "ours")
    assert problems(tmp_path / "ours", [x for x in CHECKS if x not in ("speed", "export")]) == {}
