"""The layout of the trees: sizes of folders, and unit tests that mirror the source."""

import ast

from tests.kit import ROOT

SOURCE = ROOT / "src" / "miniformer"
UNIT_TESTS = ROOT / "tests" / "unit"
MAX_FILES = 12
# Files of unit tests that are named after no module, with the reason.
NO_MODULE = {
    "model/test_compile.py": "torch.compile of whole models",
    "training/test_run_files.py": "files of a run, which several folders write",
}


def test_folder_sizes():
    for folder in [SOURCE, *(path for path in SOURCE.rglob("*") if path.is_dir())]:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(modules) > MAX_FILES:
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
            assert f"more than {MAX_FILES} files" in text, f"{folder.name}: {len(modules)} files"


def test_unit_tests_mirror_the_source():
    """`a/test_b.py` tests `a/b.py` or the package `a/b`; `b/test_b.py` tests the package `b`."""
    without = set()
    for path in UNIT_TESTS.rglob("test_*.py"):
        folder, name = path.parent.relative_to(UNIT_TESTS), path.stem.removeprefix("test_")
        module = SOURCE / folder / name
        if not (module.with_suffix(".py").exists() or module.is_dir() or name == folder.name):
            without.add(path.relative_to(UNIT_TESTS).as_posix())
        assert (SOURCE / folder).is_dir(), f"the source has no folder {folder}"
        assert (path.parent / "__init__.py").exists(), folder
    assert without == set(NO_MODULE)
