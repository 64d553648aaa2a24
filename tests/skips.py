"""Pytest plugin: skipped tests are listed with their reasons, and some of them fail the run.

A skip without a reason fails. So does, under continuous integration (`CI=true`), a skip for want of
a package of the extra `dev`: there it can only mean that the environment is broken.
"""

import os
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

_NO_REASONS = ("", "unconditional skip")
_EMPTY = "got empty parameter set"
_MISSING = re.compile(r"could not import '([\w.]+)'")


class Skips:
    """Collects the skips of a run, those of xdist's workers too."""

    def __init__(self, config):
        self.config = config
        self.skips = []  # place and reason
        self.problems = []

    def pytest_runtest_logreport(self, report):
        """Records a skipped test."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._add(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report):
        """Records a skipped file."""
        if report.skipped:
            self._add(report.nodeid, report.longrepr)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Takes over the skipped files of a worker, which xdist does not report."""
        for skip in getattr(node, "workeroutput", {}).get("skipped_files", []):
            if tuple(skip) not in self.skips:
                self.skips.append(tuple(skip))

    def pytest_sessionfinish(self, session):
        """Fails the run where a skip is a problem."""
        if hasattr(self.config, "workeroutput"):
            files = [skip for skip in self.skips if "::" not in skip[0]]
            self.config.workeroutput["skipped_files"] = files
            return
        self.problems = [text for skip in self.skips if (text := problem(*skip))]
        if self.problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        """Lists the reasons, each with the number of skips."""
        if self.skips:
            terminalreporter.section("skipped")
        for reason, count in sorted(Counter(reason for _, reason in self.skips).items()):
            terminalreporter.write_line(f"{count:>4}  {reason or 'no reason'}")
        for text in self.problems:
            terminalreporter.write_line(f"ERROR {text}", red=True)

    def _add(self, node_id, where):
        reason = where[2] if isinstance(where, tuple) else str(where)
        self.skips.append((node_id, re.sub(r"^Skipped:? *|^<Skipped instance>$", "", reason)))


def problem(node_id, reason):
    """The reason why a skip fails the run; None if it does not."""
    if reason in _NO_REASONS or reason.startswith(_EMPTY):
        return f"{node_id} is skipped without a reason"
    missing = _MISSING.match(reason)
    if missing and os.environ.get("CI") == "true" and missing[1].split(".")[0] in required():
        return f"{node_id} is skipped, but the extra dev has {missing[1]}"
    return None


def required():
    """Packages that a test environment has: those of the extra dev, and of the project itself."""
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {re.match(r"[\w-]+", requirement)[0].replace("-", "_") for requirement in listed}
