"""The page, also in headless Chromium if it is installed, and the examples of docs/serving.md."""

import contextlib
import io
import json
import re
import shlex
import shutil

import pytest

from tests.kit import ROOT

pytest.importorskip("fastapi")
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
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


@pytest.fixture(scope="module")
def page(server):
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 380, "height": 700})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and page.errors.append(line.text))
        page.goto(server[0])
        page.wait_for_selector("#model option", state="attached")
        yield page
        browser.close()


def run(page, model, text):
    page.select_option("#model", model)
    page.fill("#input", text)
    page.keyboard.press("Control+Enter")


def test_tokens_are_streamed_with_their_alternatives(page):
    run(page, "lm", "abc")
    page.wait_for_function("document.getElementById('status').textContent.includes('64 tokens')")
    assert page.locator(".token").count() == 64
    page.locator(".token").nth(3).focus()
    assert page.inner_text("#detail").count("%") == 6  # the token, and five alternatives
    assert page.errors == []


def test_classes_are_bars_and_translations_have_an_attention_map(page):
    run(page, "labels", "abc")
    page.wait_for_selector(".bar")
    assert page.locator(".bar").count() == 3
    assert not page.is_visible("#max_tokens")
    page.select_option("#model", "mt")
    page.fill("#num_beams", "1")
    run(page, "mt", "abcb")
    page.wait_for_selector("table", state="attached")
    assert page.locator("tr").first.inner_text().split() == ["a", "b", "c", "b"]
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 380, "the page does not scroll sideways"
    assert page.errors == []


def test_an_error_is_shown(page):
    run(page, "lm", "x" * 500)
    page.wait_for_function("document.getElementById('error').textContent.includes('context')")
    page.errors.clear()  # the browser logs the status
