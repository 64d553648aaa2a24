"""Rows of delimited text, compared with Python's csv module."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.data.reading.formats import delimited
from miniformer.data.reading.formats.delimited import Dialect
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.parsing import DataError
from miniformer.data.reading.records import JSONLinesDataset

CELLS = st.text(st.sampled_from('ab ",;|\n\r\té'), max_size=6)


@st.composite
def tables(draw):
    width = draw(st.integers(2, 3))
    row = st.lists(CELLS, min_size=width, max_size=width)
    return draw(st.lists(row, min_size=1, max_size=5))


@given(
    tables(),
    st.sampled_from(",;|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n"]),
    st.integers(1, 40),
)
@pytest.mark.catches("line_ends_within_quotes_end_rows", "doubled_quotes_stay_doubled")
def test_rows_round_trip_through_the_csv_module(
    tmp_path_factory, rows, delimiter, quoting, line_end, scan_bytes
):
    """Quotes, delimiters and line ends within cells; rows that lie in several read blocks."""
    if quoting == csv.QUOTE_MINIMAL:  # the module does not quote a carriage return
        rows = [[cell.replace("\r", "") for cell in row] for row in rows]
    names = [f"name{i}" for i in range(len(rows[0]))]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=line_end).writerows(
        [names, *rows]
    )
    reader = csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=delimiter)
    assert [row for row in reader if row] == [names, *rows]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(file.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_SCAN_BYTES", scan_bytes)
        data = JSONLinesDataset(path, {}, mapping=FieldMapping(delimiter=delimiter))
        assert [list(record.values()) for record in data] == rows
    starts, raw = data._indexed_files[0].index.starts, path.read_bytes()
    lines = [1 + raw.count(b"\n", 0, int(start)) for start in starts[:-1]]
    assert [data.location(i) for i in range(len(rows))] == [f"{path}:{line}" for line in lines]


@given(CELLS, CELLS)
def test_unquoted_rows_split_at_each_delimiter(first, second):
    cells = [cell.replace("\t", "") for cell in (first, second)]
    assert Dialect("\t", is_quoted=False).split("\t".join(cells)) == cells


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('a,"b', "the quote that opens cell 2 does not close"),
        ('a,"b""', "the quote that opens cell 2 does not close"),
        ('a,"b" c,d', "text follows the closing quote of cell 2: ' c,d'"),
    ],
)
def test_broken_quotes_are_named_with_their_cell(text, problem):
    with pytest.raises(DataError) as caught:
        Dialect(",").split(text)
    assert problem in caught.value.problem
    assert "--quoting none" in caught.value.problem


def test_quotes_within_a_cell_are_ordinary():
    assert Dialect(",").split('5" pipe,a "b" c,""') == ['5" pipe', 'a "b" c', ""]
