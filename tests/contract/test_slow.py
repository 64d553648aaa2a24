"""The slow ring: parts that it runs, skips and records."""

import json
import shutil

import pytest

from tests.kit import ROOT
from tests.slow import environments, parts, runner
from tests.slow.benchmarks import SCRIPTS
from tests.slow.mutations.selection import stages
from tests.slow.mutations.survivors import FILE, judge
from tests.slow.parts import Part

PASSES, FAILS = ("-c", "print('ran')"), ("-c", "raise SystemExit(3)")


@pytest.fixture
def ring(monkeypatch, tmp_path):
    """The runner with test parts; returns its exit code."""
    (tmp_path / "a.py").write_text("1")
    passed = tmp_path / "passed.json"
    passed.write_text("{}")
    monkeypatch.setattr(runner, "PASSED", passed)
    monkeypatch.setattr(runner, "ROOT", tmp_path)

    def run(*arguments, command=PASSES, minutes=5):
        part = Part("some", command, ("*.py",), minutes)
        monkeypatch.setattr(runner, "PARTS", (part, Part("other", PASSES, ("*.json",), 1)))
        return runner.main(list(arguments))

    return run


def test_slow_part_that_passed_is_skipped_until_its_files_change(ring, tmp_path, capfd):
    assert ring("some", "--record") == 0
    assert "ran" in capfd.readouterr().out
    assert ring("some", "--changed") == 0
    assert capfd.readouterr().out == ("some: skipped, its files have not changed since it passed\n")
    assert ring("some") == 0  # named without --changed, it runs
    assert "ran" in capfd.readouterr().out
    (tmp_path / "a.py").write_text("2")
    assert ring("some", "--changed") == 0
    assert "some: passed" in capfd.readouterr().out


def test_slow_part_that_fails_is_not_recorded(ring, tmp_path, capfd):
    assert ring("--record", command=FAILS) == 1
    printed = capfd.readouterr().out
    assert "some: FAILED" in printed
    assert "other: passed" in printed
    assert printed.endswith("failed: some\n")
    assert list(json.loads((tmp_path / "passed.json").read_text())) == ["other"]


def test_slow_part_longer_than_remaining_time_is_skipped(ring, capfd):
    assert ring("--minutes", "3") == 0
    printed = capfd.readouterr().out
    assert (
        "some: skipped, CHANGED but not run: it takes about 5 min, and 3 of 3 are left" in printed
    )
    assert "other: passed" in printed


def test_slow_part_unknown_name_is_rejected(ring, capfd):
    with pytest.raises(SystemExit) as stopped:
        ring("sum")
    assert stopped.value.code == 2
    assert "there is no part 'sum'; the parts are some, other" in capfd.readouterr().err


def test_digest_covers_names_contents_and_command(tmp_path):
    part = Part("some", PASSES, ("src/**/*",), 1)
    (tmp_path / "src" / "__pycache__").mkdir(parents=True)
    file = tmp_path / "src" / "a.py"
    file.write_text("1")
    digests = [runner.digest(part, tmp_path)]
    (tmp_path / "src" / "__pycache__" / "a.pyc").write_text("2")
    assert runner.digest(part, tmp_path) == digests[0]
    digests.append(runner.digest(Part("some", FAILS, ("src/**/*",), 1), tmp_path))
    file.write_text("2")
    digests.append(runner.digest(part, tmp_path))
    shutil.move(file, tmp_path / "src" / "b.py")
    digests.append(runner.digest(part, tmp_path))
    assert len(set(digests)) == 4
    with pytest.raises(FileNotFoundError, match=r"part some: no file is src/\*\*/\*"):
        runner.digest(part, tmp_path / "src")


@pytest.mark.parametrize("part", parts.PARTS, ids=lambda part: part.name)
def test_slow_parts_cover_existing_files(part):
    assert runner.digest(part)
    for word in part.command:
        assert not word.endswith(".py") or (ROOT / word).exists()


def test_constraints_of_the_slow_ring_replace_common_ones():
    common = "# tested together\nPyYAML==6.0\npython-dateutil==4.0.0\ntorch==2.13.0\n"
    own = "python_dateutil==2.9.0.post0\nmlflow==3.17.2\n"
    assert environments.constraints(common, own) == [
        "PyYAML==6.0", "mlflow==3.17.2", "python_dateutil==2.9.0.post0",
    ]  # fmt: skip


def test_benchmark_scripts_all_have_a_quick_round():
    assert set(SCRIPTS) == {path.name for path in (ROOT / "benchmarks").glob("*.py")}


def test_mutated_modules_have_tests():
    folders = ("model", "generation", "tasks", "training")
    package = ROOT / "src" / "miniformer"
    modules = [path for folder in folders for path in (package / folder).rglob("*.py")]
    for path in modules:
        for stage in stages(path.relative_to(package).as_posix()):
            assert all((ROOT / word).exists() for word in stage), stage
    assert len(modules) > 50


def mutant(line, reason=None):
    return {"module": "model/a.py", "line": line, "mutation": line + "!", "reason": reason}


def test_judge_fails_for_new_survivors_and_records_them(tmp_path, capsys):
    file = tmp_path / "survivors.json"
    file.write_text(json.dumps([mutant("old", "the same"), mutant("elsewhere"), mutant("dead")]))
    results = [(mutant("old"), False), (mutant("dead"), True), (mutant("killed"), True)]
    assert judge(results, file=file) == 0
    assert (
        "killed now, to be removed from survivors.json: model/a.py: dead!"
        in capsys.readouterr().out
    )
    results.append((mutant("new"), False))
    assert judge(results, file=file) == 1
    assert "NEW survivor in model/a.py\n    - new\n    + new!" in capsys.readouterr().out
    assert judge(results, write=True, file=file) == 0
    assert json.loads(file.read_text()) == [
        mutant("elsewhere"), mutant("new"), mutant("old", "the same"),
    ]  # fmt: skip
    assert judge(results, file=file) == 0


def test_survivors_file_names_existing_modules():
    for entry in json.loads(FILE.read_text()):
        assert (ROOT / "src" / "miniformer" / entry["module"]).exists()
        assert entry["line"] != entry["mutation"]
