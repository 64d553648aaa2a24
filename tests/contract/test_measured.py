"""Measured numbers of the pages: each is a value of a file of benchmarks/results."""

import json
import re
import runpy
import shlex

import pytest
from PIL import Image

from tests.kit import ROOT, compression_page, first_run_page, measured
from tests.kit.claims import claims, is_backed, sections, values_of

# Section of a page: files with its numbers, and the numbers that are settings, limits or computed.
BACKED = {
    ("benchmarks/README.md", "Training step"): (["train_step"], {"65", "32,000"}),
    ("benchmarks/README.md", "Time to a loss"): (
        ["time_to_loss"], {"3", "4", "20", "128", "128,", "2,000"},
    ),
    ("benchmarks/README.md", "Decoding"): (
        ["generation", "weights", "beams"], {"5", "53", "128", "512", "7.6M", "13.8M", "109.5M"},
    ),
    ("benchmarks/README.md", "Trainer overhead"): (["trainer_overhead"], set()),
    ("benchmarks/README.md", "Accuracy of adapters"): (["adapter_quality"], {"0.006"}),
    ("benchmarks/README.md", "Fewer heads of keys and values"): (["gqa"], set()),
    ("benchmarks/README.md", "Exported ONNX folders"): (
        ["export"], {"13.8M", "109M", "100", "900,"},
    ),
    ("benchmarks/README.md", "The server"): (["serve"], {"13.8M", "0.85", "1.6", "512,", "99"}),
    ("benchmarks/README.md", "Adapters"): (["adapters"], {"8", "13.8M", "16 x", "256"}),
    ("benchmarks/README.md", "Instruction tuning"): (["sft"], {"48", "20", "400", "2.5 times"}),
    ("docs/export.md", "Sizes and times"): (
        ["export", "export_quality"], {"1,000,000", "13.8M", "0.29", "100", "900", "128", "32"},
    ),
    ("docs/compression.md", "Encoders"): (["encoders"], {"8", "16 x", "32"}),
    ("docs/compression.md", "Fewer parts"): (["fewer_parts"], {"2019,", "2019", "2024"}),
    ("docs/compression.md", "Early exit"): (["exits"], {"299", "1,000", "4", "2024", "0038"}),
    ("docs/generation.md", "Speed"): (["weights"], {"512", "2.11"}),
    ("docs/generation.md", "Speculative decoding"): (["layer_drafts"], {"2", "2024"}),
    ("docs/finetuning.md", "A quantized base"): (["adapters"], {"32", "2023"}),
    ("docs/training.md", "Optimizers and learning rates"): (
        ["optimizers"], {"0.005", "0.7", "0.8", "4", "128,", "12 x", "64", "1", "2", "20"},
    ),
    ("README.md", "A run"): (["first_run"], set()),
    ("README.md", "The first ten minutes"): (["data_size"], set()),
}  # fmt: skip
# Pages and sections that a script writes, each with a test that compares them with their source.
WRITTEN = {
    "docs/benchmarks.md": None,
    "docs/recipes.md": None,
    "docs/configuration.md": None,
    "docs/matrix.md": None,
    "docs/families.md": None,
    "docs/compression.md": {"agnews", "cmudict_g2p", "multi30k_ende", "sst2", "tinyshakespeare",
                            "wikitext2"},
    "README.md": {"Measured"},
}  # fmt: skip
# Numbers of the other pages that are limits, sizes of a format, defaults or versions.
DEFINED = {
    "README.md": {"3.11"},
    "docs/compression.md": {
        "1.125", "0.625", "0.5625", "0.53", "0.75", "1.2 times", "1 %", "3 %", "95 %",
    },
    "docs/data.md": {"3.14"},
    "docs/doctor.md": {"0.05"},
    "docs/evaluation.md": {"95 %", "0.963"},  # Wilson's lower limit of 100 of 100
    "docs/export.md": {"0.27", "2.13", "2 %"},
    "docs/finetuning.md": {"5 %"},
    "docs/serving.md": {"1.22"},
    "docs/start.md": {"3.11"},
    "docs/training.md": {"1 %", "2 %", "15 %", "50 %", "1 MB", "32 MB", "64 MB", "256 MB",
                         "5 million"},
}  # fmt: skip
# Written by a script from the results, and compared with them by a test; or without measurements.
GENERATED = ("Defaults", "Benchmarks", "", "One round of each")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def numbers(value):
    """All numbers of a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def lines():
    (block,) = measured.BETWEEN.findall(README)
    return [line for line in block.splitlines() if "benchmarks/results" in line]


def test_measured_table_is_that_of_the_results():
    assert measured.page(README) == README, "run python -m tests.kit.measured"
    assert len(lines()) >= 16


@pytest.mark.parametrize("line", lines())
def test_measured_number_is_in_its_file(line):
    """The file is searched for the number, whatever the code of the table does."""
    path = re.search(r"\((benchmarks/results/\w+\.json)\)", line)[1]
    values = list(numbers(json.loads((ROOT / path).read_text(encoding="utf-8"))))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    for cell in cells[1:3]:
        text = re.match(r"[\d,.]+", cell)[0].replace(",", "")
        if text == "1":  # the unit of a ratio
            continue
        half = 0.5 * 10.0 ** -len(text.partition(".")[2])
        shown = [float(text), float(text) - 1] if text.startswith(("1.0", "0.9")) else [float(text)]
        assert any(abs(value - x) <= half + 1e-9 for value in values for x in shown), cell


def test_numbers_of_readme_outside_of_the_table_have_a_link():
    """A line of README with a speed or a ratio names a result, a page or a test."""
    text = measured.BETWEEN.sub("", README)
    for line in text.splitlines():
        if re.search(r"\d\s?(tokens/s|records/s|MB/s|times faster|x faster)\b", line):
            assert "](" in line or "benchmarks" in line, line


def test_readme_counts_the_families():
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `\w+` \|", page, re.MULTILINE)
    assert f"| published families | [{len(rows)}, in both directions]" in README


def unbacked(text, files, settings):
    values = values_of(files)
    return [x.text for x in claims(text) if not is_backed(x, values) and x.text not in settings]


@pytest.mark.parametrize("section", BACKED, ids=lambda section: " ".join(section))
def test_numbers_of_a_section_are_in_its_files(section):
    files, settings = BACKED[section]
    document, heading = section
    assert unbacked(sections(document)[heading], files, settings) == []


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        (("benchmarks/README.md", "Training step"), "| 4,240; 65 %;", "| 4,290; 65 %;"),
        (("benchmarks/README.md", "Training step"), "1.24 x; 1.24 x", "1.74 x; 1.24 x"),
        (("benchmarks/README.md", "Decoding"), "| 833; 82%", "| 893; 82%"),
        (("benchmarks/README.md", "Decoding"), "Miniformer 2,131", "Miniformer 3,131"),
        (("benchmarks/README.md", "Adapters"), "is 1.499 times", "is 1.286 times"),
        (("benchmarks/README.md", "The server"), "| 0.98 (0.85)", "| 1.18 (0.85)"),
        (("benchmarks/README.md", "Instruction tuning"), ": 1,023 here", ": 1,223 here"),
        (("benchmarks/README.md", "Fewer heads of keys and values"), "| 5.405 |", "| 5.305 |"),
        (("docs/export.md", "Sizes and times"), "BLEU 34.829", "BLEU 35.829"),
        (("docs/export.md", "Sizes and times"), "983 MB/s", "583 MB/s"),
        (("docs/generation.md", "Speed"), "0.02 %", "0.05 %"),
        (("docs/compression.md", "Early exit"), "| 1.92x |", "| 1.72x |"),
        (("README.md", "A run"), "3,301 text", "3,401 text"),
        (("README.md", "The first ten minutes"), "4.2 million", "5.2 million"),
    ],
)
def test_wrong_number_of_a_section_is_found(section, old, new):
    document, heading = section
    text = sections(document)[heading]
    assert text.count(old) >= 1
    assert len(unbacked(text.replace(old, new), *BACKED[section])) == 1


def unexplained(document, heading, text):
    """Precise numbers, and those with a unit, that no result, script or definition has."""
    written = WRITTEN.get(document, set())
    if (document, heading) in BACKED or written is None or heading in written:
        return []
    precise = [claim for claim in claims(text) if claim.decimals > 1 or claim.unit]
    return [x.text for x in precise if x.text not in DEFINED.get(document, set())]


def test_every_page_is_compared_or_has_only_defined_numbers():
    """The pages of docs/adr are left out: they have the numbers of a decision, at its time."""
    pages = ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    assert len(pages) > 20
    for document in pages:
        for heading, text in sections(document).items():
            assert unexplained(document, heading, text) == [], (document, heading)
    assert unexplained("docs/training.md", "Labels and values", "an F1 of 0.335") == ["0.335"]
    assert unexplained("README.md", "Install", "7 % of the memory") == ["7 %"]


def test_each_section_of_measurements_is_compared_with_its_files():
    headings = {heading for document, heading in BACKED if document == "benchmarks/README.md"}
    assert {*sections("benchmarks/README.md")} == {*headings, *GENERATED}


def test_run_shown_in_readme_is_that_of_its_result():
    """Each line of the excerpt is one of the output, in its order, under its command."""
    assert first_run_page.page(README) == README, "run python -m tests.kit.first_run_page"
    (block,) = re.findall(r"```text\n(\$ miniformer train .*?)```", README, re.DOTALL)
    shown = re.split(r"^\$ miniformer ", block, flags=re.MULTILINE)[1:]
    commands = first_run_page.result()["commands"]
    assert len(shown) == len(commands) == 3
    for text, command in zip(shown, commands, strict=True):
        line, *lines = text.strip().splitlines()
        assert shlex.split(line) == command["arguments"]
        output = iter(command["output"])
        assert all(line == "  ..." or line in output for line in lines)
        assert len(lines) > 1


def test_report_shown_in_readme_is_that_of_the_run():
    picture = Image.open(ROOT / "docs" / "drawings" / "report.png")
    assert picture.text["report_sha256"] == first_run_page.result()["report_sha256"]


def test_tables_of_compressed_recipes_are_those_of_the_results():
    """`python -m tests.kit.compression_page` writes them again."""
    text = compression_page.DOCUMENT.read_text(encoding="utf-8")
    assert compression_page.page(text) == text


def test_table_of_defaults_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = runpy.run_path(str(ROOT / "benchmarks" / "defaults.py"))
    table = script["table"](script["entries"]())
    text = sections("benchmarks/README.md")["Defaults"]
    assert table in text, "run python benchmarks/defaults.py --table"
    ratios = [float(x) for x in re.findall(r"\| ([\d.]+) \| [\d.]+ \|$", table, re.MULTILINE)]
    above = sum(ratio >= 1 for ratio in ratios)
    assert f"at or above the simple method on {above} of the {len(ratios)} sets that have" in text
    below = {
        name: 100 - 100 * float(ratio)
        for name, ratio in re.findall(
            r"^\| (\w+) .* \| (0\.\d+) \| [\d.]+ \|$", table, re.MULTILINE
        )
    }
    shown = re.findall(r"(\w+)\s\((?:by )?([\d.]+) %\)", text[text.index("they are below") :])
    assert {name for name, _ in shown} == {*below}
    for name, percent in shown:
        digits = len(percent.partition(".")[2])
        assert float(percent) == pytest.approx(round(below[name], digits)), name


SPEED = re.compile(
    r"\d\s?(?:tokens/s|records/s|positions/s|MB/s|GB/s|times (?:faster|slower|as fast)|x faster|"
    r"% (?:faster|slower|less|of the speed))"
)


def test_speeds_and_ratios_of_other_pages_are_in_sections_with_files():
    """A page without a section above has no measured speed, unless the line names its result."""
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "benchmarks.md"]
    for page in pages:
        document = f"docs/{page.name}"
        for heading, text in sections(document).items():
            if (document, heading) in BACKED:
                continue
            lines = [line for line in text.splitlines() if SPEED.search(line)]
            assert [line for line in lines if "benchmarks/results" not in line] == [], document
