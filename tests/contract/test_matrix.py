"""docs/matrix.md says what the battery holds."""

from tests.battery import matrix


def test_page_of_the_matrix_is_what_the_battery_holds():
    """`python -m tests.battery.matrix` writes it again."""
    counts = matrix.cases()
    assert matrix.DOCUMENT.read_text(encoding="utf-8") == matrix.document(counts)
    for start in matrix.COLUMNS.values():
        assert any(test.startswith(start) for test, _ in counts), start
