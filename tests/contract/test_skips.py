"""A skip has a reason, and in continuous integration no skip is for want of a package."""

import os
import subprocess
import sys

import pytest

from tests.kit import ROOT
from tests.skips import required

CONFTEST = """
from tests.skips import Skips

def pytest_configure(config):
    config.pluginmanager.register(Skips(config))
"""
PASSES = "def test_passes():\n    pass\n"


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    def run(source, *flags, ci="true"):
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_some.py").write_text(f"import pytest\n{source}")
        (tmp_path / "test_other.py").write_text(PASSES)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "CI": ci, "PYTEST_ADDOPTS": ""}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", tmp_path,
             "-p", "no:cacheprovider", *flags, tmp_path],
            capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    return run


NO_REASON = {
    "mark": "@pytest.mark.skip\ndef test_it(): pass\n",
    "call": "def test_it(): pytest.skip()\n",
    "parameters": "@pytest.mark.parametrize('x', [])\ndef test_it(x): pass\n",
}


@pytest.mark.parametrize("kind", NO_REASON)
def test_skip_without_a_reason_fails_the_run(kind, outcome):
    code, printed = outcome(NO_REASON[kind])
    assert code == 1
    assert "is skipped without a reason" in printed


def test_skip_with_a_reason_is_listed_and_passes(outcome):
    code, printed = outcome(
        "@pytest.mark.skip(reason='the moon is full')\ndef test_it(): pass\n"
        "@pytest.mark.xfail(reason='known')\ndef test_known(): assert 0\n"
    )
    assert code == 0
    assert "   1  the moon is full" in printed


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
@pytest.mark.parametrize("location", ["file", "test"])
def test_skip_for_missing_dev_package_fails_in_ci(location, workers, outcome):
    hide = "import sys\nsys.modules['sacrebleu'] = None\n"
    look = "pytest.importorskip('sacrebleu')"
    source = hide + (f"{look}\n{PASSES}" if location == "file" else f"def test_it(): {look}\n")
    code, printed = outcome(source, *workers)
    assert code == 1
    assert "but the extra dev has sacrebleu" in printed


def test_skip_for_missing_package_passes_outside_ci(outcome):
    hide = "import sys\nsys.modules['sacrebleu'] = None\n"
    look = "def test_it(): pytest.importorskip('{}')\n"
    assert outcome(hide + look.format("sacrebleu"), ci="")[0] == 0
    code, printed = outcome(look.format("no_such_package"))
    assert code == 0
    assert "could not import 'no_such_package'" in printed


def test_required_packages_are_those_of_dev():
    assert {"transformers", "sacrebleu", "torch", "pytest_xdist"} <= required()
    assert not {"wandb", "mlflow", "lm_eval"} & required()
