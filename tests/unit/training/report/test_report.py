import base64
import html.parser
import math
import re
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.training.report.chart_parts import (
    Scale,
    format_coordinate,
    format_number,
    make_scale,
)
from miniformer.training.report.charts import (
    Series,
    downsample,
    heat_map,
    line_chart,
    moving_average,
    svg_path,
)
from miniformer.training.report.page import Report, write_report

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


@pytest.mark.parametrize(("loss", "marks"), [(0.5, 1), (2.5e-159, 0)])
def test_chart_marks_the_best_point(tmp_path, loss, marks):
    """A logarithmic axis has no place for the second loss."""
    rows = [{"step": 0, "train_loss": 1.0}, {"step": 1, "train_loss": 0.8, "val_loss": loss}]
    page = page_of(tmp_path, metric_rows=rows, metrics={"val_loss": loss, "step": 1.0})
    circles = [e for tag, e in page.elements if tag == "circle" and e.get("class") == "best"]
    assert len(circles) == marks
    assert all(0 <= float(e["cy"].rstrip("%")) <= 100 for e in circles)


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
    assert len((tmp_path / "report.html").read_bytes()) < 400_000
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


@pytest.mark.catches("report_may_load_things")
def test_report_loads_and_runs_nothing(tmp_path):
    page = page_of(tmp_path, metric_rows=training_rows(40), title=HOSTILE, warnings=[HOSTILE])
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", source)
    policy = next(e["content"] for tag, e in page.elements if "http-equiv" in e)
    assert "default-src 'none'" in policy
    assert "script" not in policy
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "img", "object", "embed", "foreignobject"}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"href", "src"})


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
    """Every coordinate is a number within the drawing."""
    for _, attributes in page.elements:
        for name in ("d", "cx", "cy", "x", "width"):
            for word in re.findall(r"[^\sMLHVhz%]+", attributes.get(name, "")):
                assert -100 <= float(word) <= 1100, (name, attributes)


FLOATS = st.floats() | st.sampled_from([0.0, -0.0, 1e-320, 1e99, 5e-324, math.nan, math.inf])
ROW = st.dictionaries(
    st.sampled_from(["step", "train_loss", "val_loss", "val_rmse", "grad_norm", "lr", "mfu"]),
    FLOATS,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROW, max_size=8))
def test_report_of_any_floats(tmp_path_factory, rows):
    check_numbers(page_of(tmp_path_factory.mktemp("page"), metric_rows=rows, gradient_rows=rows))


def curve_of(chart, look="s1"):
    """The corners of a curve in a chart: a list of points for each continuous part."""
    (d,) = re.findall(rf'<path class="line {look}" d="([^"]*)"', chart)
    parts = d.removeprefix("M").removesuffix("h0").split("M")
    return [[tuple(map(float, p.split())) for p in part.split("L")] for part in parts]


@pytest.mark.catches("charts_stand_on_their_heads")
def test_chart_points_are_at_their_coordinates():
    # The y axis begins with 0 and ends 5 % of the spread above the highest point: 0 .. 4 + 0.2.
    points = [(0, 0.0), (5, 2.0), (10, 4.0)]
    (corners,) = curve_of(line_chart("c", [Series("a", points)], include_zero=True))
    want = [(100 * x, 1000 * (1 - y / 4.2)) for x, y in points]
    assert corners == [pytest.approx(corner, abs=0.051) for corner in want]
    # On a logarithmic one equal ratios have equal distances; later ones are higher: y is smaller.
    points = [(1, 1.0), (2, 10.0), (3, 100.0)]
    (corners,) = curve_of(line_chart("c", [Series("a", points)], log=True))
    (_, low), (_, middle), (_, high) = corners
    assert low - middle == pytest.approx(middle - high, abs=0.11)
    assert low > middle > high
    # 1 / room .. 100 * room, where room = 100 ** 0.05: 2.2 decades; 1 stands 0.1 above the foot.
    assert low == pytest.approx(1000 * (1 - 0.1 / 2.2), abs=0.051)
    chart = line_chart("c", [Series("a", [(0, 1.0), (8, 3.0)], markers=True)], x_range=(0, 10))
    assert re.findall(r'cx="([^"]*)%" cy="([^"]*)%"', chart) == [("0", "95.5"), ("80", "4.5")]


def test_chart_ticks_are_at_their_values():
    chart = line_chart("c", [Series("a", [(0, 0.0), (40, 1.0)])], include_zero=True)
    ys = [(float(top), float(word)) for top, word in re.findall(r'top:(.*?)%">([^<]*)', chart)]
    assert [value for _, value in ys] == [0.0, 0.5, 1.0]
    assert [top for top, _ in ys] == [
        pytest.approx(100 * (1 - value / 1.05), abs=0.051) for _, value in ys
    ]
    xs = [(float(left), float(word)) for left, word in re.findall(r'left:(.*?)%">([^<]*)', chart)]
    assert xs == [(2.5 * value, value) for value in (0, 10, 20, 30, 40)]


@pytest.mark.parametrize("low", [-3.7, 0.0, 0.2, 12.0, 1e5])
@pytest.mark.parametrize("spread", [1e-3, 0.9, 7.0, 4321.0, 1e9])
def test_chart_ticks_are_round_and_few(low, spread):
    ticks = Scale(low, low + spread).ticks()
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 * spread <= tick <= low + spread * (1 + 1e-9) for tick in ticks)
    step = float(f"{ticks[1] - ticks[0]:.0e}")
    assert step == pytest.approx(ticks[1] - ticks[0], rel=1e-4)
    assert f"{step:.0e}"[0] in "125"
    for tick in ticks:
        assert tick / step == pytest.approx(round(tick / step), abs=1e-4)


def test_chart_ticks_of_a_logarithmic_scale():
    assert Scale(0.9, 1100.0, True).ticks() == [1, 10, 100, 1000]
    assert Scale(0.5, 60.0, True).ticks() == [1, 3, 10, 30]
    assert len(Scale(1e-30, 1e30, True).ticks()) <= 5
    assert make_scale([3.0, 3.0]).ticks()  # equal values have room around them


def test_chart_draws_nan_as_a_gap_and_a_single_point_as_a_dot():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, math.inf), (5, 1.0), (6, 1.0)]
    d = re.search(r'd="([^"]*)"/>', line_chart("c", [Series("a", points)]).partition("line s1")[2])
    first, dot, last = d[1].removeprefix("M").split("M")
    assert (first.count("L"), dot.endswith("h0"), last.count("L")) == (1, True, 1)
    both = [Series("a", points), Series("b", [(0, math.nan)])]
    assert "<li" not in line_chart("c", both)  # b is not drawn, so it has no legend
    assert line_chart("c", both[1:]) == ""


@pytest.mark.catches("long_curve_loses_its_spikes")
def test_downsample_keeps_ends_and_extremes():
    points = [(i, math.sin(i / 50) + (i == 4321) * 9 - (i == 777) * 9) for i in range(10_000)]
    points_left = downsample(points)
    assert len(points_left) <= 610
    assert points_left == sorted(set(points_left))
    assert set(points_left) <= set(points)
    for point in (points[0], points[-1], points[4321], points[777]):
        assert point in points_left
    assert downsample(points[:600]) == points[:600]
    # A curve of ten thousand points goes through all of those, and through no other.
    across, up = Scale(0, 9999), Scale(-10, 10)
    assert svg_path(points, across, up).count("L") == len(points_left) - 1


def test_moving_average_is_a_mean_of_neighbors():
    values = [5.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]
    points = list(enumerate(values))
    want = []
    for i in range(len(values)):
        half = min(2, i)
        near = values[i - half : i + half + 1]
        want.append((i, sum(near) / len(near)))
    assert moving_average(points, 5) == [pytest.approx(point) for point in want]
    holes = [*points[:3], (2.5, math.nan), *points[3:]]
    assert moving_average(holes, 5) == moving_average(points, 5)
    line = [(i, 3.0 * i) for i in range(20)]
    assert moving_average(line, 5)[:18] == [pytest.approx(point) for point in line[:18]]


def test_chart_hover_bands_show_the_values_of_their_steps():
    training = [(i, float(i)) for i in range(1, 201)]
    chart = line_chart("c", [Series("a", training), Series("b", [(100, 7.5)])])
    bands = re.findall(r'<rect x="([^"]*)" width="([^"]*)"[^>]*><title>([^<]*)', chart)
    assert len(bands) <= 80
    edge = 0.0
    for x, width, text in bands:
        assert float(x) == pytest.approx(edge, abs=0.2)  # side by side, without a gap
        edge = float(x) + float(width)
        steps, first, *more = text.split("\n")
        low, high = re.fullmatch(r"steps? (\d+)(?: to (\d+))?", steps).groups()
        assert first == f"a: {low}" + (f" to {high}" if high else "")
        centre = 1 + 199 * (float(x) + float(width) / 2) / 1000
        assert int(low) - 1 <= centre <= int(high or low) + 1
        assert more == (["b: 7.5"] if int(low) <= 100 <= int(high or low) else [])
    assert edge == pytest.approx(1000, abs=0.2)


def test_heat_map_lightness_follows_the_value():
    columns = [(10.0, {"a": 1.0, "b": 10.0}), (20.0, {"a": 100.0, "b": math.nan})]
    chart = heat_map("norms", columns)
    cells = dict(re.findall(r'<path class="h(\d+)" d="([^"]*)"', chart))
    assert cells == {
        "0": "M0 0H500V500H0z",
        "12": "M0 500H500V1000H0z",  # halfway between 1 and 100
        "23": "M500 0H1000V500H500z",
    }
    assert re.findall("<title>([^<]*)", chart) == ["step 10\na: 1\nb: 10", "step 20\na: 100"]
    many = heat_map("norms", [(float(i), {"a": 1.0 + i}) for i in range(150)])
    assert re.findall("<title>([^<]*)", many)[0] == "steps 0 to 2\na: 3"
    assert "maximum of 3" in many
    assert heat_map("norms", []) == heat_map("norms", [(1.0, {"a": 0.0})]) == ""


def test_report_selects_and_truncates_samples(tmp_path):
    samples = [{"step": i, "prompt": f"p{i} ", "text": "x" * 5000} for i in range(1000)]
    page = page_of(tmp_path, samples=samples)
    prompts = [word for word in page.text if re.fullmatch(r"p\d+ ", word)]
    assert (prompts[0], prompts[-1], len(prompts)) == ("p0 ", "p999 ", 60)
    assert "60 of 1000 samples" in page.text
    assert page.text.count("x" * 1500) == 60
    assert " … and 3,500 characters" in page.text
    assert (tmp_path / "report.html").stat().st_size < 400_000


def test_format_number():
    values = (0.0, 3.0, 12345.6, 0.123456, 1e-5, -2.5, 1e20, math.nan, math.inf)
    texts = ["0", "3", "12,346", "0.1235", "1e-05", "-2.5", "1e+20", "nan", "inf"]
    assert [format_number(value) for value in values] == texts
    positions = (-0.01, 0.04, 33.333, 1000.0, -2.25)
    assert [format_coordinate(position) for position in positions] == [
        "0",
        "0",
        "33.3",
        "1000",
        "-2.2",
    ]
