"""Pytest plugin: `--first-cases` restricts coverage to the first cases of each test.

Tracing makes Python about 80 % slower. The first cases of a parametrized test and the first
examples of a property reach nearly every line that the others reach, so all other cases run without
tracing. So do the tests of `contract`, which mostly read files or start processes. `pytest
--cov=miniformer` alone traces all of them.
"""

import contextlib
import functools
from collections import Counter

import pytest
from coverage import Coverage

CASES = 2  # traced cases of a test
EXAMPLES = 10  # traced examples of a property


class FirstCases:
    """Pauses coverage after the first cases of each test."""

    def __init__(self):
        self.cases = Counter()  # those that have run, by test

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        """Runs a case, untraced if enough cases of its test have run."""
        test = item.nodeid.partition("[")[0]
        self.cases[test] += 1
        with contextlib.ExitStack() as paused:
            if self.cases[test] > CASES or item.path.parent.name == "contract":
                paused.enter_context(untraced())
            elif hasattr(item.obj, "hypothesis"):
                limit(item.obj.hypothesis, paused)
            return (yield)


def limit(handle, paused):
    """Pauses coverage after the first examples of a property, until `paused` is closed."""
    run, count = handle.inner_test, 0

    @functools.wraps(run)
    def inner_test(*args, **kwargs):
        nonlocal count
        if count == EXAMPLES:
            paused.enter_context(untraced())
        count += 1
        return run(*args, **kwargs)

    handle.inner_test = inner_test
    paused.callback(setattr, handle, "inner_test", run)


@contextlib.contextmanager
def untraced():
    """Pauses coverage, if there is any."""
    coverage = Coverage.current()
    if coverage is None:
        yield
        return
    coverage.stop()
    try:
        yield
    finally:
        coverage.start()


def pytest_addoption(parser):
    """Adds the option."""
    parser.addoption(
        "--first-cases", action="store_true", help="trace only the first cases of each test"
    )


def pytest_configure(config):
    """Registers the plugin where the option is given."""
    if config.getoption("--first-cases"):
        config.pluginmanager.register(FirstCases(), "miniformer-first-cases")
