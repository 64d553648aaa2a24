"""Training progress in a notebook: a display that is updated in place."""

import importlib
import io
import math
import re
import sys
import types
import warnings
import xml.etree.ElementTree

import pytest
from rich.console import Console

import miniformer
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.progress import ProgressCallback
from miniformer.training.callbacks.progress_line import TrainingStatus
from miniformer.training.evaluate import RunResult
from miniformer.training.report import notebook_progress
from miniformer.training.report.notebook_progress import render_curve, render_progress
from tests.kit.clock import Clock

STATUS = TrainingStatus(
    epoch=2, max_epochs=4, step=30, total_steps=60, loss=0.5, metric=("accuracy", 0.75),
    elapsed=62.0, left=60.0, tokens_per_second=1200.0, padding=0.0,
)  # fmt: skip
ROWS = [
    {"step": 10, "train_loss": 2.0},
    {"step": 20, "train_loss": 1.0},
    {"step": 20, "val_loss": 1.5, "val_accuracy": 0.5},
    {"step": 30, "train_loss": math.nan},
    {"step": 30, "val_loss": 1.0, "val_accuracy": 0.75},
]


class FakeDisplay:
    """Collects what a notebook would show."""

    def __init__(self):
        self.shown = []

    def update(self, data, raw):
        assert raw
        self.shown.append(data)


@pytest.mark.catches("curve_is_upside_down")
def test_curve_has_the_losses_by_step():
    html = render_curve(ROWS)
    svg = xml.etree.ElementTree.fromstring(html[: html.index("</svg>") + 6])
    train, val = (
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in svg.iter("polyline")
    )
    assert train == [(8.0, 8.0), (240.0, 132.0)]  # 2.0 is at the top, 1.0 at the bottom
    assert val == [(240.0, 70.0), (472.0, 132.0)]
    assert html.endswith(": 1 to 2, steps 10 to 30")
    assert render_curve(ROWS[:1]) == render_curve([]) == ""
    assert render_curve([{"step": 1, "train_loss": 1.0}, {"step": 2, "train_loss": 1.0}])


def test_progress_has_a_bar_numbers_and_validations():
    html = render_progress(STATUS, 0.5, ROWS)
    assert '<progress value="0.5000" max="1"' in html
    cells = re.findall("<td>(.*?)</td>", html)
    assert cells[:4] == ["epoch 2/4", "step 30/60", "loss 0.500", "accuracy 0.750"]
    assert cells[-6:] == ["20", "1.5000", "0.5000", "30", "1.0000", "0.7500"]
    assert "\x1b" not in html


@pytest.fixture
def kernel(monkeypatch):
    """A console in a kernel, and its display."""
    display = FakeDisplay()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setattr(notebook_progress, "new_display", lambda: display)
    return display


def train_two_steps(console, path, monkeypatch):
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=2)
    budget.start()
    callback = ProgressCallback(budget, path, console, metric="loss", total_steps=2)
    module = types.SimpleNamespace(
        tokens=8, padding=0, between_steps=True, train_loss=1.0,
        train_metrics=lambda: {"train_loss": 1.0},
    )  # fmt: skip
    trainer = types.SimpleNamespace(
        global_step=0, loggers=[], train_dataloader=None, callback_metrics={"val_loss": 0.5}
    )
    callback.on_train_start(trainer, module)
    for step in (1, 2):
        clock.now += 20.0
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, {}, step)
    callback.on_validation_end(trainer, module)
    callback.on_train_end(trainer, module)


@pytest.mark.catches("notebook_has_plain_lines")
def test_progress_in_a_kernel_updates_one_display(kernel, tmp_path, monkeypatch):
    console = Console(force_jupyter=True, file=io.StringIO())
    printed = []
    monkeypatch.setattr(console, "print", lambda *text: printed.append(text))
    train_two_steps(console, tmp_path / "metrics.jsonl", monkeypatch)
    assert printed == []
    assert "step 2/2" in kernel.shown[-1]["text/plain"]
    assert "<td>0.5000</td>" in kernel.shown[-1]["text/html"]


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_outside_of_a_kernel_needs_no_display(quiet, kernel, tmp_path, monkeypatch):
    out = io.StringIO()
    console = Console(force_jupyter=quiet, file=out, quiet=quiet, width=200)
    train_two_steps(console, tmp_path / "metrics.jsonl", monkeypatch)
    assert kernel.shown == []
    assert bool(out.getvalue()) != quiet


def test_run_result_shows_a_table_in_a_notebook(tmp_path):
    (tmp_path / "report.html").touch()
    metrics = {"val_accuracy": 0.75, "test_loss": 0.5, "step": 40.0}
    result = RunResult(tmp_path, tmp_path / "best", None, metrics, None, "<budget>")
    shown = dict(re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", result._repr_html_()))
    assert shown == {
        "model": str(tmp_path / "best"),
        "run": "&lt;budget&gt;",
        "validation accuracy": "0.75",
        "test loss": "0.5",
        "report": str(tmp_path / "report.html"),
    }


@pytest.mark.catches("import_in_a_notebook_warns")
@pytest.mark.parametrize("with_miniformer", [True, False])
def test_import_in_a_kernel_without_ipywidgets_does_not_warn(monkeypatch, with_miniformer):
    """Without an import of this package first, tqdm warns in this kernel."""
    shell = types.ModuleType("IPython")
    shell.get_ipython = types.SimpleNamespace
    for name, module in (("ipykernel.zmqshell", shell), ("IPython", shell), ("ipywidgets", None)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("tqdm.auto", "tqdm.autonotebook", "tqdm.notebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if with_miniformer:
            assert miniformer.UserError
        importlib.import_module("tqdm.auto")
    names = [warning.category.__name__ for warning in caught]
    assert names == ([] if with_miniformer else ["TqdmWarning"])
