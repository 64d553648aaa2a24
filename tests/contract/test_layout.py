"""The layout of the trees: sizes of folders, tests that mirror the source, one-way imports."""

import ast
import re
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

from tests.kit import ROOT

SOURCE = ROOT / "src" / "miniformer"
UNIT_TESTS = ROOT / "tests" / "unit"
MAX_FILES = 12
# Files of unit tests that are named after no module, with the reason.
NO_MODULE = {
    "exporters/onnx/test_wide_head.py": "wide heads of all features in graphs",
    "model/test_compile.py": "torch.compile of whole models",
}
# Any other folder is an extension: it imports the core, which does not import it.
CORE = {
    *("checkpoint", "cli", "commands", "config", "data", "doctor", "evaluation"),
    *("generation", "inspection", "interop"),
    *("model", "registry", "runtime", "tasks", "train_config", "trainer", "training", "utils"),
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


def imports_of(package):
    """Module -> modules that it imports, also late or for type checkers only.

    The package itself is left out: type checkers alone see its imports, since its names are lazy.
    """
    graph = grimp.build_graph(package, cache_dir=None)
    return {
        module: graph.find_modules_directly_imported_by(module)
        for module in graph.modules - {package}
    }


def find_cycle(imports):
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def extension_problems(imports):
    """Imports of an extension by the core or by another extension."""
    return [
        f"{importer} imports {imported}"
        for importer, modules in imports.items()
        for imported in modules
        if (part := imported.partition(".")[2].partition(".")[0])
        and part not in CORE
        and importer.split(".")[1] != part
    ]


def test_whole_train_config_is_for_entry_points_setup_and_resume():
    """Other packages take a part of it, such as `HardwareSettings`; trials are runs."""
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if "import TrainConfig" in path.read_text("utf-8")
    }
    entry_points = {
        *("__init__.py", "trainer.py", "training/api.py", "training/run.py"),
        "training/pretrain.py",  # of the run before
        *("training/cross_validation.py", "training/in_memory.py"),
    }
    folders = ("commands/", "training/setup/", "training/resume/", "training/trials/")
    assert {path for path in users - entry_points if not path.startswith(folders)} == set()


def test_imports_have_no_cycle():
    assert find_cycle(imports_of("miniformer")) == []


def test_extensions_are_independent_and_not_imported_by_the_core():
    assert extension_problems(imports_of("miniformer")) == []


@pytest.fixture
def toy_package(tmp_path, monkeypatch):
    """Builds the package `toy` of files and their text."""
    monkeypatch.syspath_prepend(tmp_path)

    def build(files):
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "toy" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(text, encoding="utf-8")
        return imports_of("toy")

    return build


TOY_EXTENSIONS = {
    "model/layers": "import toy.utils.files",
    "utils/files": "",
    "adapters/lora": "from toy.model import layers\nfrom toy.adapters import weights",
    "adapters/weights": "",
    "serving/server": "from toy.model import layers",
}


def test_extensions_may_import_the_core_and_themselves(toy_package):
    assert extension_problems(toy_package(TOY_EXTENSIONS)) == []


@pytest.mark.parametrize(
    ("module", "text", "problem"),
    [
        ("model/layers", "from toy.adapters import lora", "toy.model.layers imports toy.adapters"),
        ("cli", "def main():\n    import toy.serving.server", "toy.cli imports toy.serving.server"),
        ("serving/server", "import toy.adapters.lora", "toy.serving.server imports toy.adapters"),
    ],
)
def test_import_of_an_extension_is_a_problem(toy_package, module, text, problem):
    (reported,) = extension_problems(toy_package({**TOY_EXTENSIONS, module: text}))
    assert reported.startswith(problem)


def test_cycle_through_a_type_only_import_is_found(toy_package):
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy import first"
    assert find_cycle(toy_package({"first": "from toy import second", "second": late}))


# Terms that a reader searches for: a module, class or function of the source has each in its name.
TERMS = {
    "prefill": "prefill",
    "EOS": "eos",
    "early stopping": "early_stopping",
    "checkpoint": "checkpoint",
    "metric": "metrics",
    "collate": "collate",
    "NaN": "nan_",
    "rank 0": "rank0",
    "gradient clipping": "clip_grad",
    "key-value cache": "kv_cache",
    "beam search": "beam_search",
    "tokenizer": "tokenizer",
}


@pytest.fixture(scope="module")
def names_of_source():
    """Names of all modules, classes and functions."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    names = set()
    for path in SOURCE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names |= {path.stem, *(node.name for node in nodes if isinstance(node, definitions))}
    return names


@pytest.mark.parametrize("term", TERMS)
def test_term_is_in_a_name_of_the_source(names_of_source, term):
    pattern = re.compile(rf"(^|_){TERMS[term]}")
    assert [name for name in names_of_source if pattern.search(name)]
