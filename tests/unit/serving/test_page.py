"""The page for the browser, and the examples of docs/serving.md."""

import contextlib
import io
import json
import re
import shlex

import pytest

from tests.kit import ROOT

pytest.importorskip("fastapi")
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_needs_no_other_host_and_knows_every_task(http):
    from miniformer import registry

    text = http.get("/").text
    assert "://" not in text
    answered = set(
        re.findall(r"(\w+): \"\w+\"", text.partition("const WHOLE = {")[2].split("}")[0])
    )
    generating = {"language_modeling", "prefix_lm"}
    assert answered | generating >= {*registry.builtin_names("task")} - {"prefix_language_modeling"}
    labels = re.findall(r"<label>(.*?)</label>", text, re.DOTALL)
    assert all(re.search(r"<(input|select|textarea)", label) for label in labels)


def test_the_commands_of_the_page_on_serving_run(http):
    requests = blocks("bash")[1].replace("\\\n", " ").strip().splitlines()
    assert len(requests) == 3
    for line in requests:
        arguments = shlex.split(line)
        body = json.loads(arguments[arguments.index("-d") + 1])
        answer = http.post(arguments[1].removeprefix("http://127.0.0.1:8000"), json=body)
        assert answer.status_code == 200, answer.text


def test_the_python_example_streams_a_text(server):
    pytest.importorskip("openai")
    (code,) = blocks("python")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code.replace("http://127.0.0.1:8000", server[0]), {})
    assert output.getvalue()


def test_the_settings_of_the_page_exist():
    from miniformer.serving.config import ServeConfig

    names = set(ServeConfig.__dataclass_fields__)
    used = set(re.findall(r"--([a-z_]+)", PAGE))
    assert used - {"help"} <= names
