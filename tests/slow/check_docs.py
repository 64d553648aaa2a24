"""The documentation site: strict builds, links, sizes of pages, nothing from the network."""

import html
import html.parser
import subprocess
import sys
import urllib.parse

import pytest
import yaml

from tests.kit import ROOT

SITE = ROOT / ".site"
MAX_BYTES = 300_000
# Attributes that make a browser load something.
LOADING = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src")}


class Page(html.parser.HTMLParser):
    """Links, anchors and loaded files of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.loaded = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        canonical = values.get("rel") in ("canonical", "prev", "next")
        for name in ("src", "href"):
            if (tag, name) in LOADING and values.get(name) and not canonical:
                self.loaded.append(values[name])


@pytest.fixture(scope="module", params=["properdocs", "mkdocs"])
def pages(request):
    """Pages of the site by path, built by each of two programs; MkDocs' site stays in .site."""
    command = [sys.executable, "-m", request.param, "build", "--strict", "-f", "mkdocs.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Page(path) for path in sorted(SITE.rglob("*.html"))}


def test_site_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            if target.is_dir():
                target = target / "index.html"
            anchors = pages[target].anchors if target in pages else set()
            if not target.exists() or (url.fragment and url.fragment not in anchors):
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert broken == []


def test_site_pages_are_small_and_load_nothing_from_the_network(pages):
    assert {
        str(path): path.stat().st_size for path in pages if path.stat().st_size > MAX_BYTES
    } == {}
    loaded = {link for page in pages.values() for link in page.loaded}
    assert {link for link in loaded if urllib.parse.urlsplit(link).netloc} == set()


def test_site_has_every_page_and_public_name(pages):
    names = {path.relative_to(SITE).as_posix() for path in pages}
    documents = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert {path.with_suffix(".html").as_posix() for path in documents} <= names
    import miniformer

    reference = "".join(p.read_text("utf-8") for p in (SITE / "reference").glob("*.html"))
    public = set(miniformer.__all__) - {"__version__"}
    assert {name for name in public if f".{name}" not in reference} == set()


def test_site_navigation_has_every_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = str(settings["nav"])
    documents = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in documents if f"'{name}'" not in listed} == set()


def test_site_has_a_page_for_each_notebook(pages):
    for path in sorted((ROOT / "examples").glob("*.py")):
        page = (SITE / "examples" / path.with_suffix(".html").name).read_text(encoding="utf-8")
        text = path.read_text(encoding="utf-8")
        assert html.escape(text.splitlines()[1].removeprefix("# # ")) in page
        assert page.count("highlight") >= text.count("\n# %%\n")
        assert f"examples/{path.name}" in page
