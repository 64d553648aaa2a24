"""docs/architecture.md and docs/reading.md agree with the import contract and with the files."""

import re
import tomllib

from tests.kit import ROOT

SOURCE = ROOT / "src" / "miniformer"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def layer_ranks():
    """Rank of each layer of the import contract, by module; the highest layer has 0."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = next(item["layers"] for item in contracts["contracts"] if item["type"] == "layers")
    return {
        module.removeprefix("miniformer."): rank
        for rank, layer in enumerate(layers)
        for module in layer.split(" | ")
    }


def diagram_nodes(text):
    """Modules that each node of a diagram names, before the colon of its label."""
    labels = dict(re.findall(r'(\w+)\["([^":]+):', text))
    return {
        node: [name.removesuffix(".py") for name in label.split(", ")]
        for node, label in labels.items()
    }


def upward_arrows(text, ranks):
    """Arrows of a diagram that do not lead to a lower layer."""
    nodes = diagram_nodes(text)
    arrows = re.findall(r"(\w+)(?:\[[^\]]*\])? --> (\w+)", text)
    assert len(arrows) >= 10
    return [
        (above, below)
        for above, below in arrows
        if max(ranks[name] for name in nodes[above]) >= min(ranks[name] for name in nodes[below])
    ]


def test_diagram_layers():
    """The diagram has every layer of the import contract, and its arrows lead downward."""
    ranks = layer_ranks()
    named = [name for names in diagram_nodes(ARCHITECTURE).values() for name in names]
    assert sorted(named) == sorted(ranks)
    assert upward_arrows(ARCHITECTURE, ranks) == []
    wrong = f"{ARCHITECTURE}\n    tasks --> checkpoint\n"
    assert upward_arrows(wrong, ranks) == [("tasks", "checkpoint")]


def test_package_table():
    """The table of packages names every folder of the source."""
    table = ARCHITECTURE.partition("## Packages")[2].partition("\n## ")[0]
    folders = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_dir() and any(path.glob("*.py"))
    }
    firsts = re.findall(r"^\| ([^|]+) \|", table, flags=re.MULTILINE)
    named = set(re.findall(r"`([\w/]+)/`", " ".join(firsts)))
    assert named <= folders
    # A folder may also be covered by the row of the folder around it, or by those of its folders.
    assert [
        folder
        for folder in folders - named
        if not any(row.startswith(f"{folder}/") or folder.startswith(f"{row}/") for row in named)
    ] == []


def test_reading_order_files():
    """The reading order has seven and five files, each of which exists."""
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    training, generation = (
        re.findall(r"^\d\. `([\w/.]+)`", part, flags=re.MULTILINE)
        for part in text.split("\n## ")[1:]
    )
    assert (len(training), len(generation)) == (7, 5)
    assert all((SOURCE / name).is_file() for name in [*training, *generation])
