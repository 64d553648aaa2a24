"""Seeded faults of miniformer.utils."""

from tests.faults import fault


@fault("miniformer.utils.atomic:PendingFile.commit")
def commit_keeps_private_mode(original):
    """Permissions set by a library are kept."""

    def commit(self, path, *, durable=False):
        self._mode = self.path.stat().st_mode & 0o777
        original(self, path, durable=durable)

    return commit


@fault("miniformer.utils.atomic:atomic_path")
def atomic_path_writes_in_place(original):
    """The file is written at its final path."""
    import contextlib

    @contextlib.contextmanager
    def atomic_path(path, *, durable=False):
        yield path

    return atomic_path


@fault("miniformer.utils.atomic:PendingFile.__exit__")
def failed_write_leaves_temporary_file(original):
    """A temporary file stays after an error."""
    return lambda self, *error: None


@fault("miniformer.utils.streams:printable_output")
def output_stays_strict(original):
    """Output streams still raise UnicodeEncodeError."""
    import contextlib

    return lambda *extra_streams: contextlib.nullcontext()


@fault("miniformer.utils.names:name_problem")
def names_may_leave_folder(original):
    """A name may be a path out of its folder."""
    return lambda name: None if name else "it is empty"


@fault("miniformer.utils.page:format_cell")
def table_cells_are_markup(original):
    """Texts in tables are not escaped."""
    return str


@fault("miniformer.utils.jsonl:read_json")
def deep_files_overflow_the_stack(original):
    """Files that are nested deeply end with the error of Python's own reader."""

    def read_json(path):
        import json

        return json.loads(path.read_text(encoding="utf-8"))

    return read_json


@fault("miniformer.utils.page:_is_numeric")
def names_over_numbers_are_on_the_left(original):
    """The name of a column of numbers is aligned as that of a column of texts."""
    return lambda column: False


@fault("miniformer.utils.memory:release_freed_memory")
def freed_memory_stays_with_the_process(original):
    """Freed memory is not returned to the system."""
    return lambda: None


@fault("miniformer.utils.streams:progress_bars")
def commands_import_lightning(original):
    """Progress bars import what training needs."""

    def progress_bars(console):
        import lightning  # noqa: F401

        return original(console)

    return progress_bars


@fault("miniformer.utils.errors:_as_argument")
def values_of_flags_are_texts(original):
    """All values of arguments are texts."""

    def as_argument(match):
        if match["name"] is None or match["value"] is None:
            return original(match)
        return f"{match['name']}={match['value']!r}"

    return as_argument


@fault("miniformer.utils.errors:UserError.__str__")
def commands_print_arguments(original):
    """A command prints arguments of Python."""

    def text(self):
        from miniformer.utils.errors import flags_as_arguments

        return flags_as_arguments(self.args[0])

    return text


@fault("miniformer.utils.errors:UserError.__str__")
def python_errors_name_flags(original):
    """An error in Python names flags."""
    return lambda self: self.args[0]
