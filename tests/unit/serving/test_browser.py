"""The page in headless Chromium, where it and Playwright are installed."""

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def page(server):
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
