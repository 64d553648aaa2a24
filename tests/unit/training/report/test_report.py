import base64
import html.parser
import io
import itertools
import math
import re
import statistics
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps, image

from miniformer.training.report.charts import Series, heat_map, line_chart
from miniformer.training.report.curves import metric_points, moving_average, plot_loss
from miniformer.training.report.page import Report, write_report
from miniformer.utils.formats import format_number

pytestmark = pytest.mark.usefixtures("real_pictures")

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "</td><script>alert('1')</script><img src=x onerror=\"x\"> & \x00 \ud800"


class Page(html.parser.HTMLParser):
    """A parsed page: its elements and text; its tags must be balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page_of(tmp_path, **parts):
    file = tmp_path / "report.html"
    write_report(
        file, Report(**{"title": "run", "task": "regression", "loss_unit": "nats", **parts})
    )
    assert [path.name for path in tmp_path.glob("*report*")] == ["report.html"]
    return Page(file.read_text(encoding="utf-8"))


def training_rows(count, *, every=20):
    rows = []
    for i in range(1, count + 1):
        row = {"step": i, "tokens": 64 * i, "padding": 0.1, "seconds": i / 7}
        rows.append({
            **row, "train_loss": 2 + 6 / i + (i * 7919 % 101) / 300, "lr": 1e-3 / i,
            "grad_norm": 3 / i, "waiting": 0.01, "memory_mb": 900.0 + i % 7,
            "tokens_per_second": 1e4 + i * 7919 % 997, "mfu": 0.4 + (i * 7919 % 101) / 1e3,
        })  # fmt: skip
        if i % every == 0:
            rows.append({**row, "val_loss": 2.5 + 5 / i, "val_accuracy": 1 - 1 / i})
    return rows


def headlines(page):
    """Titles of the charts."""
    names = [e["aria-label"].partition(",")[0] for tag, e in page.elements if "aria-label" in e]
    return [name.partition(" from step")[0] for name in names]


@pytest.mark.parametrize(("loss", "text"), [(0.5, "0.5"), (2.5e-159, "0")])
def test_chart_marks_the_best_point(tmp_path, loss, text):
    rows = [{"step": 0, "train_loss": 1.0}, {"step": 1, "train_loss": 0.8, "val_loss": loss}]
    page = page_of(tmp_path, metric_rows=rows, metrics={"val_loss": loss, "step": 1.0})
    groups = [attributes.get("class") for tag, attributes in page.elements if tag == "g"]
    assert groups.count("best") == 1
    assert f"best: {text} at step 1" in page.text
    check_numbers(page)


@pytest.mark.catches("mark_is_on_the_loss")
def test_mark_is_on_the_chart_of_the_metric(tmp_path):
    """The best model is that of step 60, where the accuracy is best; the loss is lowest earlier."""
    rows = [
        {"step": step, "val_loss": abs(step - 20) + 1.0, "val_accuracy": 1 - abs(step - 60) / 100}
        for step in range(10, 101, 10)
    ]
    page = page_of(tmp_path, metric_rows=rows, metrics={"step": 60.0}, metric="accuracy")
    assert headlines(page)[0] == "Validation accuracy"
    assert [text for text in page.text if text.startswith("best:")] == ["best: 1 at step 60"]
    groups = [attributes.get("class") for tag, attributes in page.elements if tag == "g"]
    assert groups.count("best") == 1


@pytest.mark.catches("report_ends_with_what_to_do")
def test_report_opens_with_what_to_do_next(tmp_path):
    parts = {
        "metric_rows": training_rows(60), "metrics": {"val_loss": 1.0, "step": 60.0},
        "sections": [("Classes (test data)", "<p>table</p>")],
        "given_settings": {"lr": 0.003}, "changed_settings": {"seed": "0 (default)"},
        "environment": {"device": "cpu"},
    }  # fmt: skip
    page_of(tmp_path, **parts, verdicts=["overfitting: <b> rises", "padding: 40 %"])
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", source) == [
        "What to do next", "Classes (test data)", "Curves", "Settings given", "Settings resolved",
        "Training", "Model, data and machine",
    ]  # fmt: skip
    assert "<li>overfitting: &lt;b&gt; rises</li><li>padding: 40 %</li>" in source
    assert source.index("What to do next") < source.index('class="tiles"')
    page_of(tmp_path, **parts)
    assert "No problems found in the curves" in (tmp_path / "report.html").read_text()


@pytest.mark.catches("curves_go_by_row")
def test_report_page_is_complete(tmp_path):
    picture = tmp_path / "answers.png"
    picture.write_bytes(b"\x89PNG, whatever it holds")
    layers = ["embedding", *(f"layers.{i}" for i in range(30)), "head"]
    rows = training_rows(400)
    page = page_of(
        tmp_path,
        metric_rows=rows,
        gradient_rows=[{"step": i, **dict.fromkeys(layers, 0.1234 / i)} for i in range(1, 401)],
        samples=[{"step": 20, "prompt": "The cat", "text": "  sat\n\ton the mat"}],
        metrics={"val_loss": 1.23456, "val_accuracy": 0.8125, "step": 380.0, "seconds": 3725.0,
                 "training_tokens": 25600.0},
        changed_settings={"lr": 0.003, "model_config": {"d_model": 64}},
        environment={"machine": "two cores"},
        plots=[picture, tmp_path / "missing.png"],
        warnings=["stopped early"],
    )  # fmt: skip
    assert len((tmp_path / "report.html").read_bytes()) < 300_000
    texts = page.text
    for value in ("1.235", "0.8125", "380", "25,600", "1 h 2 min", "0.003", "two cores",
                  '{"d_model": 64}', "stopped early", "The cat",
                  "  sat\n\ton the mat"):  # fmt: skip
        assert value in texts
    rates = [row["tokens_per_second"] for row in rows if "lr" in row]
    assert f"{statistics.median(rates):,.0f}" in texts
    assert any(text == "best: 2.513 at step 400" for text in texts)
    assert list(dict.fromkeys(headlines(page))) == [
        "Loss", "Validation accuracy", "Learning rate", "Gradient norm", "Tokens per second",
        "Model FLOPs utilization", "Memory", "Waiting and padding", "Gradient norms by layer",
    ]  # fmt: skip
    images = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert images == ["data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()]


def test_report_is_deterministic_and_its_ids_are_unique(tmp_path):
    layers = {"embedding": 0.5, "head": 0.25}
    parts = {
        "metric_rows": training_rows(60),
        "gradient_rows": [{"step": i, **layers} for i in range(1, 9)],
    }
    page = page_of(tmp_path, **parts)
    source = (tmp_path / "report.html").read_bytes()
    page_of(tmp_path, **parts)
    assert (tmp_path / "report.html").read_bytes() == source
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', source.decode())) <= set(ids)


@pytest.mark.catches("report_may_load_things")
def test_report_loads_and_runs_nothing(tmp_path):
    page = page_of(
        tmp_path,
        metric_rows=training_rows(40),
        gradient_rows=[{"step": 1, "a": 0.5}],
        title=HOSTILE,
        warnings=[HOSTILE],
    )
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", source)
    policy = next(e["content"] for tag, e in page.elements if "http-equiv" in e)
    assert "default-src 'none'" in policy
    assert "script" not in policy
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "img", "object", "embed", "foreignobject"}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"href", "src"})
    links = [
        value for _, attributes in page.elements for k, value in attributes.items() if "href" in k
    ]
    assert all(re.match("#|data:image/png;base64,", link) for link in links)


@pytest.mark.catches("text_of_others_is_markup")
def test_report_escapes_text(tmp_path):
    page = page_of(
        tmp_path,
        title=HOSTILE,
        task=HOSTILE,
        loss_unit=HOSTILE,
        metric_rows=[{"step": 1, "train_loss": 1.0, f"val_{HOSTILE}": 2.0, "val_loss": 3.0}],
        gradient_rows=[{"step": 1, HOSTILE: 0.5}],
        samples=[{"step": 1, "prompt": HOSTILE, "text": HOSTILE}],
        metrics={HOSTILE: 1.5},
        changed_settings={HOSTILE: HOSTILE, "more": [HOSTILE]},
        environment={HOSTILE: HOSTILE},
        warnings=[HOSTILE],
    )
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    readable = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "?")
    # Unbroken, so none of it is markup: the title twice, task, warning, metric, a layer, and two
    # each of settings, environment and samples. Others are parts of longer texts.
    assert page.text.count(readable) == 12


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{}],
        [{"step": 5}],
        [{"step": 5, "train_loss": 2.5, "lr": 0.1}],
        [{"step": 5, "val_loss": 2.5}],
        [{"train_loss": 2.5}],
        [
            {"step": math.nan, "train_loss": 1.0},
            {"step": 2, "train_loss": math.inf, "lr": math.nan},
        ],
        [{"step": i, "train_loss": 3.0, "grad_norm": 0.0} for i in range(50)],
        [{"step": 1, "val_loss": 1e308, "grad_norm": 1e-320}, {"step": 2, "val_loss": -1e308}],
    ],
)
def test_report_of_any_metrics_rows(tmp_path, rows):
    check_numbers(
        page_of(tmp_path, metric_rows=rows, gradient_rows=rows, metrics={"val_loss": math.nan})
    )


def check_numbers(page):
    """Every coordinate is a number within the drawing or near it."""
    for _, attributes in page.elements:
        for name in ("d", "x", "y", "width", "height"):
            for word in re.findall(r"[^\sMLCQz]+", attributes.get(name, "").removesuffix("pt")):
                assert -100 <= float(word) <= 1100, (name, attributes)


FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1e-320, 1e99, 5e-324, math.nan, math.inf])
ROW = st.dictionaries(
    st.sampled_from(["step", "train_loss", "val_loss", "val_rmse", "grad_norm", "lr", "mfu"]),
    FLOATS,
)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(ROW, max_size=8))
def test_report_of_any_floats(tmp_path_factory, rows):
    check_numbers(page_of(tmp_path_factory.mktemp("page"), metric_rows=rows, gradient_rows=rows))


def series(label, points, **options):
    rows = [{"step": x, "y": y} for x, y in points]
    return Series(label, metric_points(rows, "y"), **options)


def curves_of(chart):
    """Corners of each curve in a chart: a list of points for each continuous part."""
    curves = []
    for d in re.findall(r'<g class="curve"><path d="([^"]*)"', chart):
        parts = d.split("M")[1:]
        curves.append([[tuple(map(float, p.split())) for p in part.split("L")] for part in parts])
    return curves


def y_ticks(chart):
    """The labels of the y axis and the heights of their grid lines."""
    tick = r'<g class="ytick_\d+">.*?<path d="M [\d.]+ ([\d.]+) .*?<text[^>]*>([^<]*)'
    return {number_of(text): float(y) for y, text in re.findall(tick, chart)}


def x_ticks(chart):
    """The labels of the x axis and their places."""
    tick = r'<g class="xtick_\d+">.*?<text[^>]* x="([\d.]+)"[^>]*>([^<]*)'
    return {number_of(text): float(x) for x, text in re.findall(tick, chart)}


def number_of(text):
    return float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))


@pytest.mark.catches("charts_stand_on_their_heads")
def test_chart_points_are_at_their_coordinates():
    chart = line_chart("c", [series("a", [(0, 0.0), (5, 2.0), (10, 4.0)])], include_zero=True)
    (((left, low), middle, (right, high)),) = curves_of(chart)[0]
    assert high < low  # SVG has y downwards
    assert middle == pytest.approx(((left + right) / 2, (low + high) / 2), abs=0.11)
    ys, xs = y_ticks(chart), x_ticks(chart)
    assert (ys[0.0], ys[2.0], ys[4.0]) == pytest.approx((low, middle[1], high), abs=0.11)
    assert (xs[0.0], xs[10.0]) == pytest.approx((left, right), abs=0.11)
    # On a logarithmic axis equal ratios have equal distances.
    chart = line_chart("c", [series("a", [(1, 1.0), (2, 10.0), (3, 100.0)])], log=True)
    (((_, one), (_, ten), (_, hundred)),) = curves_of(chart)[0]
    assert one - ten == pytest.approx(ten - hundred, abs=0.21)
    assert one > ten > hundred
    assert [y_ticks(chart)[value] for value in (1, 10, 100)] == pytest.approx(
        [one, ten, hundred], abs=0.11
    )
    # The ends of the x axis may be given.
    chart = line_chart("c", [series("a", [(0, 1.0), (8, 3.0)], markers=True)], x_range=(0, 10))
    (((left, _), (right, _)),) = curves_of(chart)[0]
    xs = x_ticks(chart)
    assert (left, right) == pytest.approx((xs[0], xs[8]), abs=0.11)
    assert xs[10] - xs[0] == pytest.approx(1.25 * (right - left), abs=0.21)
    markers = [float(x) for x in re.findall(r'<use [^>]* x="([^"]*)"', chart)]
    assert markers == pytest.approx([left, right], abs=0.11)


@pytest.mark.parametrize("low", [-3.7, 0.0, 12.0])
@pytest.mark.parametrize("spread", [0.9, 7.0, 4321.0])
@pytest.mark.parametrize("log", [False, True])
def test_chart_ticks_are_round_and_few(low, spread, log):
    low = abs(low) + spread / 100 if log else low
    chart = line_chart("c", [series("a", [(0, low), (70, low + spread)])], log=log)
    for ticks in (list(y_ticks(chart)), list(x_ticks(chart))):
        assert 2 <= len(ticks) <= 9
        steps = {f"{b - a:.0e}"[0] for a, b in itertools.pairwise(ticks)}
        assert log or (len(steps) == 1 and steps <= set("125"))


def test_chart_draws_nan_as_a_gap_and_a_single_point_as_a_dot():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, math.inf), (5, 1.0), (6, 1.0)]
    chart = line_chart("c", [series("a", points)])
    ((first, *_, last),) = curves_of(chart)
    assert (len(first), len(last)) == (2, 2)
    assert chart.count("<use") == 1
    # A curve without values is not drawn and has no legend.
    both = [series("a", points), series("b", [(0, math.nan)])]
    assert "<text" in line_chart("c", both)
    assert ">a</text>" not in line_chart("c", both)
    assert line_chart("c", both[1:]) == ""


@pytest.mark.catches("long_curve_loses_its_spikes")
def test_chart_of_a_long_curve_keeps_ends_and_extremes():
    def value(i):
        return (i * 7919 % 101) / 101 + (i == 4321) * 9 - (i == 777) * 9

    count = 20_000
    points = [(i, value(i)) for i in range(count)]
    chart = line_chart("c", [series("a", points)], full_width=True, x_range=(0, count - 1))
    (corners,) = curves_of(chart)[0]
    assert len(corners) < 4000
    xs, ys = x_ticks(chart), y_ticks(chart)

    def position(i):
        x = xs[0] + (xs[10_000] - xs[0]) * i / 10_000
        return x, ys[0] + (ys[5] - ys[0]) * value(i) / 5

    for i in (0, 777, 4321, count - 1):
        x, y = position(i)
        assert min(math.dist((x, y), corner) for corner in corners) < 1.5


def test_moving_average_is_a_mean_of_neighbors():
    values = [5.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    points = np.array(list(enumerate(values)))
    want = []
    for i in range(len(values)):
        half = min(2, i)
        near = values[i - half : i + half + 1]
        want.append((i, sum(near) / len(near)))
    np.testing.assert_allclose(moving_average(points, 5), want)
    holes = np.insert(points, 3, [2.5, math.nan], axis=0)
    np.testing.assert_array_equal(moving_average(holes, 5), moving_average(points, 5))
    line = np.array([(i, 3.0 * i) for i in range(20)])
    np.testing.assert_allclose(moving_average(line, 5)[:18], line[:18])


def test_chart_hover_bands_show_the_values_of_their_steps():
    training = [(i, float(i)) for i in range(1, 201)]
    chart = line_chart("c", [series("a", training), series("b", [(100, 7.5)])], x_range=(1, 201))
    box = r'<rect x="([^"]*)" y="[^"]*" width="([^"]*)"[^>]*><title>([^<]*)'
    bands = re.findall(box, chart)
    assert len(bands) <= 60
    ticks = x_ticks(chart)
    scale = (ticks[150] - ticks[50]) / 100
    edge = start = ticks[50] - 49 * scale
    for x, width, text in bands:
        assert float(x) == pytest.approx(edge, abs=0.3)  # side by side, without a gap
        edge = float(x) + float(width)
        steps, first, *more = text.split("\n")
        low, high = re.fullmatch(r"steps? (\d+)(?: to (\d+))?", steps).groups()
        assert first == f"a: {low}" + (f" to {high}" if high else "")
        center = 1 + (float(x) + float(width) / 2 - start) / scale
        assert int(low) - 1 <= center <= int(high or low) + 1.1
        assert more == (["b: 7.5"] if int(low) <= 100 <= int(high or low) else [])
    assert edge == pytest.approx(start + 200 * scale, abs=0.3)


def test_heat_map_lightness_follows_the_value():
    rows = [{"step": 10, "a": 1.0, "b": 10.0}, {"step": 20, "a": 100.0, "b": math.nan}]
    chart = heat_map("norms", rows)
    picture = re.search('<image [^>]*href="data:image/png;base64,([^"]*)"', chart, re.DOTALL)[1]
    colors = image.imread(io.BytesIO(base64.b64decode(picture)))
    if colors[0, 0].tolist() == pytest.approx(colormaps["viridis"](0.5), abs=0.01):
        colors = colors[::-1]  # stored upside down, as its transformation says
    expected = [[0.0, 1.0], [0.5, math.nan]]  # 10 is halfway between 1 and 100
    for row in range(2):
        for column in range(2):
            value = expected[row][column]
            color = [0] * 4 if math.isnan(value) else colormaps["viridis"](value)
            assert colors[row, column].tolist() == pytest.approx(color, abs=0.01)
    assert re.findall("<title>([^<]*)", chart) == ["step 10\na: 1\nb: 10", "step 20\na: 100"]
    texts = re.findall(r"<text[^>]*>([^<]*)", chart)
    assert texts == ["10", "20", "optimizer step", "a", "b", "norms", "1", "100"]
    many = heat_map("norms", [{"step": i, "a": 1.0 + i} for i in range(150)])
    assert re.findall("<title>([^<]*)", many)[0] == "steps 0 to 2\na: 3"
    assert ">each column: maximum of 3</text>" in many
    assert heat_map("norms", []) == heat_map("norms", [{"step": 1, "a": 0.0}]) == ""


def test_report_selects_and_truncates_samples(tmp_path):
    samples = [{"step": i, "prompt": f"p{i} ", "text": "x" * 5000} for i in range(1000)]
    page = page_of(tmp_path, samples=samples)
    prompts = [word for word in page.text if re.fullmatch(r"p\d+ ", word)]
    assert (prompts[0], prompts[-1], len(prompts)) == ("p0 ", "p999 ", 60)
    assert "60 of 1000 samples" in page.text
    assert page.text.count("x" * 1500) == 60
    assert " … and 3,500 characters" in page.text
    assert (tmp_path / "report.html").stat().st_size < 300_000


def test_format_number():
    values = (0.0, 3.0, 12345.6, 0.123456, 1e-5, -2.5, 1e20, math.nan, math.inf)
    texts = ["0", "3", "12,346", "0.1235", "1e-05", "-2.5", "1e+20", "nan", "inf"]
    assert [format_number(value) for value in values] == texts


@pytest.mark.catches("plots_change_the_style")
def test_plots_restore_matplotlib_settings(tmp_path):
    def parameters():  # reading the backend selects one
        return {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}

    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9.0}):
        before = parameters()
        plot_loss([{"step": 1, "train_loss": 2.0}], tmp_path / "a.png", title="$x_", unit="nats")
        assert parameters() == before
    plot_loss([{"step": 1, "train_loss": 2.0}], tmp_path / "b.png", title="$x_", unit="nats")
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second  # the style of the user does not matter
    assert first.startswith(b"\x89PNG")


def test_matplotlib_is_imported_with_the_first_plot(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        import miniformer.tasks.common.plots
        from miniformer.training.report.page import Report, write_report

        print("matplotlib" in sys.modules)
        rows = [{"step": 1, "train_loss": 2.0}]
        write_report(Path(sys.argv[1]), Report("a", "b", "nats", metric_rows=rows))
        print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
    """
    command = [sys.executable, "-c", code, str(tmp_path / "report.html")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("False\nTrue False\n", "")


@pytest.mark.catches("long_labels_leave_no_space_for_the_chart")
@pytest.mark.filterwarnings("error")  # matplotlib warns of a plot without space
def test_charts_have_space_beside_long_names(tmp_path):
    name = "W" * 250
    curve = Series("loss", np.array([[1, 2.0], [2, 1.0]]))
    assert "W…W" in line_chart(name, [curve], unit=name)
    assert "W…W" in heat_map("norms", [{"step": step, name: 2.0, "b": 1.0} for step in (1, 2)])
    plot_loss([{"step": 1, "train_loss": 2.0}], tmp_path / "a.png", title=name, unit="nats")
