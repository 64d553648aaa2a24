"""The layout of the source tree: folders of a size that can be read."""

import ast

from tests.kit import ROOT

SOURCE = ROOT / "src" / "miniformer"
MAX_FILES = 12


def test_folder_sizes():
    for folder in [SOURCE, *(path for path in SOURCE.rglob("*") if path.is_dir())]:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(modules) > MAX_FILES:
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
            assert f"more than {MAX_FILES} files" in text, f"{folder.name}: {len(modules)} files"
