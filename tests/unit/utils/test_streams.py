"""Output streams that cannot encode a character, and input that is not in the locale's encoding."""

import io
import json
import subprocess
import sys

import pytest

from miniformer.config.command_line import command_context
from miniformer.utils.streams import printable_output, read_stdin
from tests.kit import run_python

TEXT = "caf\u00e9 \u65e5\u672c \U0001f44d \udc80"


def _stream(encoding, errors="strict"):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline="")


def _written(stream):
    stream.flush()
    return stream.buffer.getvalue()


@pytest.mark.catches("output_stays_strict")
@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", b"caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x91\x8d \\udc80"),
        ("latin-1", b"caf\xe9 \\u65e5\\u672c \\U0001f44d \\udc80"),
        ("cp1252", b"caf\xe9 \\u65e5\\u672c \\U0001f44d \\udc80"),
        ("ascii", b"caf\\xe9 \\u65e5\\u672c \\U0001f44d \\udc80"),
    ],
)
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_printable_output_escapes_what_encoding_lacks(encoding, written, errors, monkeypatch):
    streams = {name: _stream(encoding, errors) for name in ("stdout", "stderr", "more")}
    monkeypatch.setattr(sys, "stdout", streams["stdout"])
    monkeypatch.setattr(sys, "stderr", streams["stderr"])
    with printable_output(streams["more"], sys.stdout):
        for stream in streams.values():
            stream.write(TEXT)
    assert {name: _written(stream) for name, stream in streams.items()} == dict.fromkeys(
        streams, written
    )
    assert [stream.errors for stream in streams.values()] == [errors] * 3


def test_printable_output_keeps_what_user_has_chosen(monkeypatch):
    monkeypatch.setattr(sys, "stdout", _stream("ascii", "replace"))
    with printable_output(io.StringIO()):
        print(TEXT, end="")
        with printable_output():
            print(TEXT, end="")
    assert _written(sys.stdout) == 2 * b"caf? ?? ? ?"


@pytest.mark.catches("output_stays_strict")
def test_exit_code_prints_any_text_and_error(monkeypatch):
    from miniformer.config import UserError

    monkeypatch.setattr(sys, "stdout", _stream("latin-1"))
    monkeypatch.setattr(sys, "stderr", _stream("latin-1"))

    with command_context() as command:
        print("\u65e5")
        raise UserError("\u672c: no such file")
    assert command.code == 2
    assert _written(sys.stdout) == b"\\u65e5\n"
    assert _written(sys.stderr) == b"miniformer: error: \\u672c: no such file\n"


@pytest.mark.catches("a_closed_pipe_is_an_error")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_command_whose_reader_has_gone_ends_without_a_traceback(size):
    """As with `| head -1`: the write fails, or the one when the process ends."""
    code = (
        "import sys\n"
        "from miniformer.config.command_line import command_context\n"
        "with command_context() as command:\n"
        "    sys.stdin.read()\n"
        f"    print('x' * {size})\n"
        "sys.exit(command.code)\n"
    )
    command = [sys.executable, "-c", code]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipe) as process:
        process.stdout.close()
        process.stdin.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_standard_input_is_utf8_whatever_the_locale(monkeypatch):
    given = io.TextIOWrapper(io.BytesIO("\u65e5\u672c".encode()), encoding="latin-1")
    monkeypatch.setattr(sys, "stdin", given)
    assert read_stdin() == "\u65e5\u672c"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xe9"), encoding="latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_stdin()


@pytest.mark.catches("commands_import_lightning")
@pytest.mark.parametrize("task", ["classification", "token_classification"])
def test_data_check_and_progress_bars_import_only_what_they_need(task, tmp_path):
    """Lightning and torchmetrics take seconds to import; only training and metrics need them."""
    path = tmp_path / "a.jsonl"
    records = {
        "classification": [{"input": "a b", "label": name} for name in "xy"],
        "token_classification": [{"tokens": ["a"], "tags": [name]} for name in "xy"],
    }[task]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = run_python(
        "-c",
        "import sys\nfrom miniformer import cli\nfrom miniformer.commands import models, predict\n"
        f"code = cli.main(['data', 'check', {str(path)!r}, '--task', {task!r}])\n"
        "with models.progress_bar('predict') as update: update(1, 2)\n"
        "print({'lightning', 'torchmetrics'} & {*sys.modules})\nsys.exit(code)",
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "set()"), done.stderr
