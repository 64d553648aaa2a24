"""The list of destinations, and its table in docs/export.md."""

import pytest

from miniformer import cli, registry
from miniformer.exporters.destination import destination
from tests.kit import export_page


@pytest.mark.catches("every_destination_is_installed")
def test_list_shows_what_each_destination_takes_and_needs(monkeypatch, capsys):
    needs = destination(
        "models of a kind", runtime="x", extra="gguf", packages=("no_such_package",)
    )

    def write_plain(directory, out):
        """Writes without stated facts."""

    monkeypatch.setitem(
        registry._registered, "exporter",
        {"needy": needs(write_plain), "plain": write_plain},
    )  # fmt: skip
    assert cli.main(["export", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("needy       models of a kind")
    assert lines[start + 1].strip() == 'for x; needs pip install "miniformer[gguf]"'
    assert "plain       Writes without stated facts" in "\n".join(lines)
    for name in registry.builtin_names("exporter"):
        assert any(line.startswith(f"{name} ") for line in lines)
    assert "for torch.export.load, in Python without this package; installed" in "\n".join(lines)


def test_tables_of_the_page_are_those_of_the_registry_and_of_the_results():
    """`python -m tests.kit.export_page` writes them again."""
    text = export_page.DOCUMENT.read_text(encoding="utf-8")
    assert export_page.page(text) == text
    assert "| `pt2` |" in text
    assert "| `gguf q8_0` |" in text
