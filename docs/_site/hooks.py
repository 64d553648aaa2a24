"""Hooks of the documentation site: pages from outside of `docs`, and the reference.

The pages keep the links that work in the repository; this file rewrites those that leave `docs`.
"""

import ast
import base64
import json
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
# Files of the repository that are pages of the site, by their path in it.
PAGES = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CODE_OF_CONDUCT.md": "CODE_OF_CONDUCT.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "LICENSE": "LICENSE",
    "benchmarks/README.md": "benchmarks/README.md",
}
# Files that pages link to, copied as they are.
COPIED = ("recipes/*.yaml", "benchmarks/*.yaml", "benchmarks/results/*.json", "benchmarks/*.py")
MAX_LINE = 160  # characters of a line of output
# Pages of the reference: their title, and the packages whose public names they have.
REFERENCE = {
    "models": ("Models", ("config", "model")),
    "data": ("Data", ("data",)),
    "training": ("Training", ("train_config", "training", "tasks")),
    "use": ("Loading, decoding, exchange", ("checkpoint", "generation", "interop")),
    "tools": (
        "Export, compression, serving, extension",
        ("exporters", "compression", "serving", "doctor", "registry"),
    ),
}


def on_files(files, config):
    """Adds pages and files from outside of `docs`."""
    for target, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=_links_in_site(text, source)))
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "examples").glob("*.py")):
        content = _notebook(path)
        files.append(File.generated(config, f"examples/{path.stem}.md", content=content))
    for page, content in _reference().items():
        files.append(File.generated(config, page, content=content))
    records = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    development = next(part["Development"] for part in config.nav if "Development" in part)
    if not any("Decisions" in entry for entry in development):
        development.append({"Decisions": [f"adr/{name}" for name in records]})
    return files


def on_page_markdown(markdown, page, **_):
    """Links from a page of `docs` to the repository are links in the site."""
    if page.file.src_uri in PAGES or "/" in page.file.src_uri:
        return markdown
    markdown = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", markdown)
    markdown = markdown.replace("](../", "](")
    return re.sub(r"\]\(README\.md(#[^)]*)?\)", r"](index.md\1)", markdown)


def _links_in_site(text, source):
    """Links of a page from outside of `docs`: pages of `docs` are at the root of the site."""
    text = text.replace("](docs/", "](").replace("](../docs/", "](../")
    text = text.replace("](adr/)", "](architecture.md)")  # a folder is no page
    if source == "benchmarks/README.md":
        return text
    return re.sub(r"\]\(README\.md(#[^)]*)?\)", r"](index.md\1)", text)


def _notebook(path):
    """A notebook as a page, with the outputs of `make notebooks` if they are of this source."""
    cells = percent_cells(path.read_text(encoding="utf-8"))
    outputs = _outputs(ROOT / ".notebooks" / f"{path.stem}.ipynb", cells)
    parts = []
    for number, (is_text, source) in enumerate(cells):
        if is_text:
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += outputs.get(number, [])
    return "\n\n".join([*parts, f"The file of this notebook is `examples/{path.name}`."])


def percent_cells(text):
    """Cells of a file in percent format: (it is Markdown, source) each."""
    cells = []
    for block in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, _, source = block.partition("\n")
        is_text = kind.strip() == "[markdown]"
        if is_text:
            source = "\n".join(
                line.removeprefix("#").removeprefix(" ") for line in source.splitlines()
            )
        cells.append((is_text, source.strip("\n")))
    return cells


def _outputs(path, cells):
    """Outputs of a notebook that has run, by cell: text blocks and images as Markdown or HTML."""
    if not path.is_file():
        return {}
    notebook = json.loads(path.read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]).strip("\n") for cell in notebook["cells"]]
    if sources != [source for _, source in cells]:
        return {}
    return {
        number: [shown for output in cell["outputs"] if (shown := _output(output))]
        for number, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == "code"
    }


def _output(output):
    """An output as HTML or as a text block; empty if there is nothing to show."""
    data = {name: "".join(value) for name, value in output.get("data", {}).items()}
    if "image/svg+xml" in data:
        svg = data["image/svg+xml"]
        encoded = base64.b64encode(svg.encode("utf-8")).decode("ascii")
        return f'<img alt="plot" src="data:image/svg+xml;base64,{encoded}">'
    if "text/html" in data:
        return "".join(line.strip() for line in data["text/html"].splitlines())
    text = data.get("text/plain") or "".join(output.get("text", ""))
    lines = [line[:MAX_LINE] for line in text.rstrip().splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```" if lines else ""


def _reference():
    """Pages with the docstrings of all public names, by path."""
    tree = ast.parse((ROOT / "src/miniformer/__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_PUBLIC"
    )
    pages = {}
    for page, (title, packages) in REFERENCE.items():
        lines = [f"# {title}", "", "Each name is imported from `miniformer`.", ""]
        for name in [name for name in names if names[name].split(".")[1] in packages]:
            lines += [f"::: {names.pop(name)}.{name}", ""]
        pages[f"reference/{page}.md"] = "\n".join(lines)
    if names:
        raise ValueError(f"no page of the reference has {', '.join(names)}")
    return pages
