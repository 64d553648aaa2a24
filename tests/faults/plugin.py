"""Pytest plugin: `pytest -p tests.faults.plugin --fault NAME` runs the tests that catch a fault."""

from pathlib import Path

import pytest

from tests.faults import BrokenFault, install

_FOLDER = str(Path(__file__).resolve().parent)


def pytest_addoption(parser):
    parser.addoption("--fault", metavar="NAME", help="install this seeded fault")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    """Installs the fault before any conftest imports the package."""
    if early_config.known_args_namespace.fault:
        install(early_config.known_args_namespace.fault)


def pytest_collection_modifyitems(config, items):
    """Keeps the tests whose marker names the fault."""
    name = config.getoption("--fault")
    if not name:
        return
    catching = [item for item in items if any(name in m.args for m in item.iter_markers("catches"))]
    chosen = set(map(id, catching))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in chosen])
    items[:] = catching


class Outcomes:
    """Collects the tests that fail, and the reason if it is the fault's own code that fails."""

    def __init__(self):
        self.failed = []
        self.broken = []

    def pytest_runtest_logreport(self, report):
        if report.failed and report.when == "call":
            self.failed.append(report.nodeid)

    def pytest_exception_interact(self, node, call):
        error = call.excinfo
        last = str(error.traceback[-1].path) if error.traceback else ""
        if isinstance(error.value, BrokenFault):
            self.broken.append(str(error.value))
        elif last.startswith(_FOLDER):
            self.broken.append(f"the code of the fault raises {error.typename}: {error.value}")
