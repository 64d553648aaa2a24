"""Components of installed packages: found, loaded, skipped, refused. Packages are files here."""

import pickle

import pytest
from packaging.specifiers import SpecifierSet

from miniformer import registry
from miniformer.config import PluginWarning, TransformerConfig, UserError
from miniformer.registry import plugins
from tests.kit import run_python
from tests.kit.packages import write_package

CUBE = "def cube(x):\n    return x**3\n"


def test_registry_loads_entry_points(tmp_path):
    write_package(tmp_path, "tiny-plugin", {"activation": {"cube": "tiny_plugin:cube"}}, code=CUBE)
    done = run_python(
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import miniformer\n"
        "config = miniformer.TransformerConfig(activation='cube')\n"
        "assert 'torch' not in sys.modules and 'tiny_plugin' not in sys.modules\n"
        "model = miniformer.Transformer(config)\n"
        "print(model.layers[0].feed_forward.activation(3))\n",
    )
    assert done.stdout == "27\n", done.stderr


@pytest.mark.catches("kinds_of_packages_are_unknown")
def test_package_adds_a_kind_and_another_one_its_component(install):
    code = 'REWARD = "(texts) -> [B]"\nclass Rule:\n    """Base class of rules."""\n'
    kinds = {"reward": "rewards:REWARD", "rule": "rewards:Rule"}
    install("rewards", {"kind": kinds}, code=code)
    install("long-texts", {"reward": {"length": "long_texts:length"}}, code="length = len\n")
    assert registry.kinds()[-2:] == ["reward", "rule"]
    assert registry.interface("reward") == "(texts) -> [B]"
    assert registry.interface("rule") == "Base class of rules"
    assert registry.names("reward") == ["length"]
    assert registry.get("reward", "length")("abc") == 3
    registry.register("rule", "first", max)
    assert registry.get("rule", "first") is max
    del registry._registered["rule"]


@pytest.mark.catches("import_of_a_plugin_is_fatal")
def test_component_that_cannot_be_imported_is_skipped_with_one_warning(install):
    runtimes = {"broken": "fast_decoding:make", "fine": "builtins:len"}
    folder = install("fast-decoding", {"runtime": runtimes}, code="import no_such_module\n")
    with pytest.warns(PluginWarning) as caught:
        names = [name for name, _ in registry.load_all("runtime", last_first=True)]
    assert names == ["fine", "cuda_graphs", "native"]
    assert [name for name, _ in registry.load_all("runtime")] == names[::-1]  # warns once
    (warning,) = caught
    assert str(warning.message) == (
        "runtime 'broken' of fast-decoding 1.0 (fast_decoding:make) cannot be imported: "
        f"ModuleNotFoundError: No module named 'no_such_module' ({folder}/fast_decoding.py:1); it "
        "is skipped"
    )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (
            "import no_such_module\n",
            "ModuleNotFoundError: No module named 'no_such_module' (FILE:1)",
        ),
        ("x = 1\ndef cube(x:\n", "SyntaxError: '(' was never closed (FILE:2)"),
        ("\n1 / 0\n", "ZeroDivisionError: division by zero (FILE:2)"),
        ("import json\njson.loads('{')\n", "JSONDecodeError: Expecting property name"),
        ("import json\njson.loads('{')\n", " (FILE:2)"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (FILE:2)"),
        ("other = 1\n", "AttributeError: module 'broken_parts' has no attribute 'cube'"),
    ],
)
@pytest.mark.catches("error_of_a_plugin_has_no_line")
def test_component_that_is_named_and_cannot_be_imported_is_an_error(install, code, cause):
    folder = install("broken-parts", {"activation": {"cube": "broken_parts:cube"}}, code=code)
    TransformerConfig(activation="cube")  # the name is known
    TransformerConfig(activation="gelu")
    with pytest.raises(UserError) as caught:
        registry.get("activation", "cube")
    message = "activation 'cube' of broken-parts 1.0 (broken_parts:cube) cannot be imported: "
    text = str(caught.value)
    assert text.startswith(message)
    assert len(text.splitlines()) == 1
    assert cause.replace("FILE", str(folder / "broken_parts.py")) in text
    assert caught.value.__cause__ is not None
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.catches("last_package_wins_a_name")
def test_name_that_two_packages_claim_is_an_error_naming_both(install):
    install("first", {"activation": {"cube": "first:cube"}}, code=CUBE)
    install("second-one", {"activation": {"cube": "second_one:f"}}, code=CUBE, version="2.1")
    for ask in (registry.names, lambda kind: registry.get(kind, "gelu")):
        with pytest.raises(UserError, match="'cube' is claimed by two: ") as caught:
            ask("activation")
        assert "first 1.0 (first:cube)" in str(caught.value)
        assert "second-one 2.1 (second_one:f)" in str(caught.value)
    assert registry.get("norm", "rmsnorm")


def test_builtin_name_that_a_package_claims_is_an_error(install):
    install("first", {"activation": {"gelu": "first:cube"}}, code=CUBE)
    with pytest.raises(UserError, match=r"'gelu' is claimed by two: Miniformer .* first 1\.0"):
        registry.get("activation", "gelu")


def test_name_of_a_package_is_not_registered_again(install):
    install("first", {"activation": {"cube": "first:cube"}}, code=CUBE)
    with pytest.raises(UserError, match=r"exists already: it is of first 1\.0 \(first:cube\)"):
        registry.register("activation", "cube", abs)


@pytest.mark.catches("api_version_is_not_checked")
@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        (None, None),
        ("norms,miniformer", None),
        ("miniformer_api>=1,<2", None),
        ("norms,miniformer_api ~= 1.0,other", None),
        ("miniformer_api==1", None),
        (
            "miniformer_api>=2",
            "needs miniformer_api>=2, and this Miniformer has miniformer_api 1.0",
        ),
        ("a,miniformer_api>0.5,<1,zebra", "needs miniformer_api>0.5,<1, and this Miniformer has "),
        ("miniformer_api!=1", "needs miniformer_api!=1, "),
        ("miniformer_api>=1.1", "needs miniformer_api>=1.1, "),
        ("miniformer_api latest", "has the keyword 'miniformer_apilatest', which is no version "),
    ],
)
def test_version_of_the_plugin_api_is_checked(install, keywords, problem):
    metadata = "" if keywords is None else f"Keywords: {keywords}"
    entries = {"activation": {"cube": "parts:cube"}}
    install("parts", entries, code=CUBE, metadata=metadata)
    if problem is None:
        assert registry.get("activation", "cube")(2) == 8
        return
    with pytest.raises(UserError) as caught:
        registry.get("activation", "cube")
    assert f"activation 'cube' of parts 1.0 (parts:cube) {problem}" in str(caught.value)


@pytest.mark.parametrize("operator", [">=", "<=", ">", "<", "==", "!=", "~="])
def test_comparison_of_versions_is_that_of_packaging(operator):
    for text in ("0", "0.9", "1", "1.0", "1.1", "2", "2.0"):
        # One number stands for all versions that begin with it.
        wildcard = {"==": f"{text}.*", "!=": f"{text}.*", "~=": f"{text}.0"}.get(operator, text)
        expected = "1.0" in SpecifierSet(operator + (text if "." in text else wildcard))
        assert plugins._holds(operator, text) == expected, text


def test_summary_of_a_component_is_read_without_importing_it(install):
    code = '"""Prunes.\n\nMore."""\nraise RuntimeError\ndef run():\n    """Removes heads."""\n'
    entries = {"command": {"a": "pruning", "b": "pruning:run", "c": "no_such:x", "d": "pruning:y"}}
    install("pruning", entries, code=code, metadata="Summary: tools for pruning")
    summaries = [registry.summary("command", name) for name in "abcd"]
    assert summaries == ["Prunes", "Removes heads", "tools for pruning", "Prunes"]
    install("bare", {"command": {"e": "bare_module.x"}}, code=None)
    assert registry.summary("command", "e") == "of the package bare 1.0"


def test_module_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outer_p" / "inner").mkdir(parents=True)
    (tmp_path / "outer_p" / "__init__.py").write_text("raise RuntimeError\n")
    (tmp_path / "outer_p" / "inner" / "part.py").write_text('"""A part."""\n')
    (tmp_path / "outer_p" / "inner" / "__init__.py").write_text('"""Inner."""\n')
    assert plugins.read_doc_line("outer_p.inner.part", "") == "A part"
    assert plugins.read_doc_line("outer_p.inner", "") == "Inner"
    assert plugins.read_doc_line("outer_p.other", "") == ""
    assert plugins.read_doc_line("builtins", "") == ""
