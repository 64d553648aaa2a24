"""docs/matrix.md describes the battery."""

from tests.battery import matrix


def test_matrix_page_is_that_of_the_battery():
    """`python -m tests.battery.matrix` writes it again."""
    counts = matrix.cases()
    assert matrix.DOCUMENT.read_text(encoding="utf-8") == matrix.document(counts)
    for start in matrix.COLUMNS.values():
        assert any(test.startswith(start) for test, _ in counts), start
