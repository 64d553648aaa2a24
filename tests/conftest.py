import multiprocessing
import os
import random
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist workers would otherwise fight over the cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # and waiting threads would keep them busy

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings

from miniformer import registry
from miniformer.registry import plugins
from tests import first_cases
from tests.kit.packages import write_package
from tests.kit.pictures import NO_PICTURES, PICTURES, draw_pictures
from tests.kit.seeds import VARIABLE, chosen_seed
from tests.skips import Skips

SEED = chosen_seed()
# The same examples each time, or those of a seed; and no deadline: this must not depend on how busy
# the machine is.
settings.register_profile("steady", derandomize=SEED is None, deadline=None, database=None)
settings.load_profile("steady")
# For seeded faults: that something fails is enough; its smallest example can take minutes.
settings.register_profile(
    "unshrunk", settings.get_profile("steady"), phases=[Phase.explicit, Phase.generate]
)


pytest_addoption = first_cases.pytest_addoption


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Hands the seed to hypothesis before its own plugin reads it; collects skips."""
    config.pluginmanager.register(Skips(config), "miniformer-skips")
    first_cases.pytest_configure(config)
    if SEED is not None and config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(SEED)


def pytest_report_header():
    return [] if SEED is None else f"examples of {VARIABLE}={SEED}"


@pytest.fixture(scope="module")
def fast_launch():
    """Forks the processes of `launch` from a server, which imports Lightning once for all."""
    multiprocessing.set_forkserver_preload(["lightning", "pytest", "hypothesis"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("miniformer.training.distributed.launcher.START_METHOD", "forkserver")
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_pictures():
    """Draws no picture: it takes longer than the tiny runs of most tests. See `real_pictures`."""
    with pytest.MonkeyPatch.context() as patched:
        draw_pictures(patched, NO_PICTURES)
        yield


def _real_pictures():
    """Draws pictures, for tests that look at them."""
    with pytest.MonkeyPatch.context() as patched:
        draw_pictures(patched, PICTURES)
        yield


real_pictures = pytest.fixture(_real_pictures)
real_pictures_of_module = pytest.fixture(_real_pictures, scope="module")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package for this test; see `write_package`."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def forget():
        plugins._find_entry_points.cache_clear()
        registry._skipped.clear()
        for path in folder.glob("*.py"):
            sys.modules.pop(path.stem, None)

    def install(*args, **options):
        write_package(folder, *args, **options)
        forget()
        return folder

    yield install
    forget()


@pytest.fixture(autouse=True)
def _same_start_for_every_test():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32, "a test left another default dtype behind"
