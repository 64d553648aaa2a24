"""Faults in `miniformer.data.reading`: formats, columns, cells."""

from tests.faults import fault

# Delimited text.


@fault("miniformer.data.reading.formats.delimited:Dialect.ends_in_quotes")
def line_ends_within_quotes_end_rows(original):
    """Each line of a file is a row."""
    return lambda self, line, in_quotes: False


@fault("miniformer.data.reading.formats.delimited:Dialect.split")
def doubled_quotes_stay_doubled(original):
    """Two quotes within a quoted cell stay two."""

    def split(self, text):
        return original(self, text.replace('""', '""""') if '"' in text else text)

    return split


@fault("miniformer.data.reading.formats.table:_detect_dialect")
def delimiter_is_always_a_comma(original):
    """The delimiter of a .csv file is not detected."""

    def detect(sample, quoted, expected):
        from miniformer.data.reading.formats.delimited import Dialect

        return Dialect(",", quoted)

    return detect


@fault("miniformer.data.reading.files:text_start")
def byte_order_mark_is_a_part_of_the_header(original):
    """A byte-order mark is not skipped."""
    return lambda handle: 0


@fault("miniformer.data.reading.formats.table:TextTable._given_columns")
def columns_leave_out_the_first_row(original):
    """The first row of a file without a header is lost."""

    def given_columns(self, first, mapping):
        self.has_header = True
        return original(self, first, mapping)

    return given_columns


@fault("miniformer.data.reading.formats.table:TextTable.parse")
def rows_of_any_width_are_read(original):
    """Missing cells are empty, and others are dropped."""

    def parse(self, raw):
        text = raw.decode(self.encoding or "utf-8").rstrip("\r\n")
        cells = self.dialect.split(text) + [""] * len(self.columns)
        return dict(zip(self.columns, cells, strict=False))

    return parse


@fault("miniformer.data.reading.formats.table:TextTable._header")
def column_twice_in_the_header_is_accepted(original):
    """Of two columns with one name, the last one is read."""

    def header(self, first, sources):
        names = []
        for name in first:
            names.append(name if name not in names else f"{name} ({len(names)})")
        return original(self, names, sources)

    return header


# Cells.


@fault("miniformer.data.reading.cells:parse_number")
def cells_without_a_number_are_zero(original):
    """A cell without a number is read as 0."""

    def parse_number(text):
        try:
            return original(text)
        except ValueError:
            return 0

    return parse_number


@fault("miniformer.data.reading.cells:infer_kinds")
def column_has_the_kind_of_its_first_cell(original):
    """Only the first row decides on the kinds of columns."""

    def infer_kinds(rows, sources):
        return original(list(rows)[:1], sources)

    return infer_kinds


@fault("miniformer.data.reading.cells:infer_kinds")
def labels_are_always_names(original):
    """Integer labels of a table are texts."""

    def infer_kinds(rows, sources):
        kinds, separator = original(rows, sources)
        return kinds | dict.fromkeys(sources.get("label", ()), "text"), separator

    return infer_kinds


@fault("miniformer.data.reading.cells:infer_kinds")
def integers_of_tables_stay_text(original):
    """Columns that are no fields hold text."""
    return lambda rows, sources: ({}, original(rows, sources)[1])


@fault("miniformer.data.reading.cells:CellMapper._labels")
def labels_are_separated_by_commas_alone(original):
    """Semicolons and bars do not separate labels."""

    def labels(self, text, kind):
        self.label_separator = "," if self.label_separator else None
        return original(self, text, kind)

    return labels


# Columns of fields.


@fault("miniformer.data.reading.mapping:combine")
def two_columns_of_texts_are_joined(original):
    """Two columns are one text, not a pair."""

    def combine(field, row, names, separator, groups=None):
        return original(field, row, names, separator or " ", groups)

    return combine


@fault("miniformer.data.reading.mapping:combine")
def patterns_of_columns_are_one_vector(original):
    """The columns of a pattern are not steps of a series."""

    def combine(field, row, names, separator, groups=None):
        return original(field, row, names, separator, None)

    return combine


@fault("miniformer.data.reading.mapping:RowMapper.__call__")
def columns_replace_the_row(original):
    """Columns that are no fields are lost."""

    def call(self, row):
        result = original(self, row)
        return {name: result[name] for name in self.sources}

    return call


@fault("miniformer.data.reading.mapping:check_columns")
def columns_of_tables_are_not_checked(original):
    """A table without the columns is refused by its first record alone."""
    return lambda columns, mapping, fields: None


@fault("miniformer.data.reading.suggestions:suggest_flags")
def suggested_flags_follow_the_order_of_columns(original):
    """The first column is suggested for the first field."""

    def suggest_flags(missing, columns):
        flags = {"input": "input_field", "source": "input_field", "tokens": "input_field"}
        return " ".join(
            f"--{flags.get(field, 'label_field')} {name}"
            for field, name in zip(missing, columns, strict=False)
        )

    return suggest_flags


# Other formats.


@fault("miniformer.data.reading.formats.conll:TaggedTokens.parse")
def ranges_of_conllu_are_tokens(original):
    """Contractions are tokens beside their words."""
    return lambda self, raw: original(self, raw.replace(b"-", b""))


@fault("miniformer.data.reading.formats.conll:TaggedTokens._position")
def tags_of_conllu_are_xpos(original):
    """The default tags are those of the language."""

    def position(self, name, column, field, default):
        return original(self, name, column, field, {"upos": "xpos"}.get(default, default))

    return position


@fault("miniformer.data.reading.formats.conll:TaggedTokens._is_document_start")
def marks_of_documents_are_sentences(original):
    """-DOCSTART- is a token."""
    return lambda self, handle, start, end: False


@fault("miniformer.data.reading.formats.json_array:_item_spans")
def offsets_of_an_array_are_characters(original):
    """Offsets in a file count characters, not bytes."""

    def item_spans(text):
        return original("".join(char if char.isascii() else "?" for char in text))

    return item_spans


@fault("miniformer.data.reading.formats.arrow:ArrowFile._read_part")
def rows_of_parquet_are_of_the_first_group(original):
    """Every row group is the first one."""
    return lambda self, part: original(self, 0)


# A run.


@fault("miniformer.checkpoint.data_settings:StoredDataSettings.mapping")
def columns_of_the_training_data_are_forgotten(original):
    """A loaded model does not know the columns of its training data."""

    def mapping(self):
        from miniformer.data.reading.mapping import FieldMapping

        return FieldMapping()

    return mapping


@fault("miniformer.data.inspect:mixed_label_warnings")
def names_among_integer_labels_are_not_named(original):
    """A label such as n/a among integers is not reported."""
    return lambda splits: []


@fault("miniformer.data.reading.formats.frames:FrameRows.__getitems__")
def missing_numbers_of_frames_are_nan(original):
    """Values of frames keep their own types."""
    return lambda self, indices: list(self._read(self._source, list(indices)))


@fault("miniformer.data.reading.formats.opening:open_data_file")
def json_files_are_lines(original):
    """A .json file has an object on each line."""

    def open_data_file(path, mapping, fields, **options):
        from miniformer.data.reading.index import IndexedFile

        if path.suffix == ".json":
            return IndexedFile(path, **options)
        return original(path, mapping, fields, **options)

    return open_data_file


@fault("miniformer.utils.columns:parse_delimiter")
def names_of_the_tab_are_refused(original):
    """Only one character is a delimiter, so that a shell needs a real tab."""
    return lambda value: value if len(value) == 1 else None


@fault("miniformer.data.reading.files:reject_binary")
def binary_files_are_read_as_text(original):
    """A spreadsheet with the name of a .csv file is read as text."""
    return lambda handle: None


@fault("miniformer.data.reading.cells:_fix_number")
def numbers_have_no_fix(original):
    """A cell with a decimal comma is to be fixed somehow."""
    return lambda text: "fix the cell"


@fault("miniformer.data.reading.mapping:suggest_columns")
def columns_in_use_are_suggested(original):
    """The column of the input is suggested as that of the label."""
    return lambda missing, sources, columns: original(missing, {}, columns)


@fault("miniformer.data.reading.parsing:check_nul")
def nul_is_a_character_of_texts(original):
    """Texts may have NUL characters."""
    return lambda text: text
