"""Subcommands of packages: listed without an import, imported to run, completed by shells."""

import pytest

from miniformer import cli, registry
from miniformer.commands import completion
from miniformer.config import PluginWarning
from tests.kit import run_python
from tests.kit.packages import write_package

PRUNE = '''"""Remove the smallest weights."""

from miniformer import UserError

def add_arguments(parser):
    parser.add_argument("directory", type=str, help="model directory")
    parser.add_argument("--share", type=float, default=0.5, help="share of the weights")

def run(values):
    if values["share"] > 1:
        raise UserError(f"share must be at most 1, not {values['share']}")
    print(values)
    return None if values["share"] == 0.5 else 3
'''
ENTRIES = {"command": {"thin": "pruning"}}


@pytest.mark.catches("help_imports_every_command")
def test_command_of_a_package_is_listed_without_an_import(tmp_path):
    write_package(tmp_path, "pruning", ENTRIES, code=PRUNE)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from miniformer.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "commands = [name for name in sys.modules if name.startswith('miniformer.commands')]\n"
        "print([name for name in ('torch', 'pruning') if name in sys.modules], commands)"
    )
    done = run_python("-c", code)
    assert "    thin                Remove the smallest weights\n" in done.stdout, done.stderr
    assert done.stdout.endswith("\n[] []\n")


@pytest.mark.parametrize(("flags", "code", "share"), [([], 0, 0.5), (["--share", "0.25"], 3, 0.25)])
def test_command_of_a_package_runs(install, capsys, flags, code, share):
    install("pruning", ENTRIES, code=PRUNE)
    assert cli.main(["thin", "runs/a", *flags]) == code
    assert capsys.readouterr().out == f"{{'directory': 'runs/a', 'share': {share}}}\n"


def test_mistakes_with_a_command_of_a_package_are_user_errors(install, capsys):
    install("pruning", ENTRIES, code=PRUNE)
    assert cli.main(["thin", "runs/a", "--share", "2"]) == 2
    assert capsys.readouterr().err == "miniformer: error: share must be at most 1, not 2.0\n"
    assert cli.main(["thin", "runs/a", "--shrae", "2"]) == 2
    assert "unknown flag --shrae; did you mean --share?" in capsys.readouterr().err
    assert cli.main(["thim"]) == 2
    assert "unknown command 'thim' (did you mean 'thin'?)" in capsys.readouterr().err


@pytest.mark.catches("completion_lacks_commands_of_packages")
def test_command_of_a_package_is_completed(install, capsys):
    install("pruning", ENTRIES, code=PRUNE)
    install("broken-tool", {"command": {"broken": "broken_tool"}}, code="import no_such_module\n")
    with pytest.warns(PluginWarning, match="command 'broken' of broken-tool 1.0 .* it is skipped"):
        table = completion.flags_by_command()
    assert [flag.name for flag in table["thin"]] == ["--help", "--share"]
    assert cli.main(["completion", "fish"]) == 0
    assert "-f -a thin\n" in capsys.readouterr().out


def test_command_that_cannot_be_imported_breaks_no_other(install, capsys):
    install("broken-tool", {"command": {"broken": "broken_tool"}}, code="import no_such_module\n")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "broken" in capsys.readouterr().out
    assert cli.main(["doctor", "--family", "lama"]) == 2
    assert "did you mean 'llama'" in capsys.readouterr().err
    assert cli.main(["broken"]) == 2
    assert (
        "command 'broken' of broken-tool 1.0 (broken_tool) cannot be imported: ModuleNotFound"
        in (capsys.readouterr().err)
    )


def test_command_that_two_packages_claim_is_a_user_error(install, capsys):
    install("pruning", ENTRIES, code=PRUNE)
    install("other-tool", {"command": {"thin": "pruning"}}, code=None)
    assert cli.main(["--version"]) == 2
    assert "command 'thin' is claimed by two: other-tool 1.0 (pruning), and pruning 1.0" in (
        capsys.readouterr().err
    )


@pytest.mark.catches("command_without_run_does_nothing")
def test_command_without_a_function_is_a_user_error(install, capsys):
    code = "def add_arguments(parser):\n    pass\n"
    install("half-tool", {"command": {"half": "half_tool"}}, code=code)
    assert cli.main(["half"]) == 2
    assert "command 'half' has no function run: <module 'half_tool'" in capsys.readouterr().err


class Nested:
    """Tools for weights."""

    DESCRIPTION = "Count or list weights."
    ONLY_GIVEN = True

    def add_arguments(self, parser):
        inner = parser.add_subcommands(required=True, dest="what")
        inner.add_subcommand("count", cli.command_parser("Count."), help="count weights")

    def run(self, values):
        print(values["what"])


def test_registered_object_with_subcommands_is_a_command(monkeypatch, capsys):
    monkeypatch.setitem(registry._registered, "command", {"weights": Nested()})
    assert cli.main(["weights", "count"]) == 0
    assert capsys.readouterr().out == "count\n"
    with pytest.raises(SystemExit):
        cli.main(["weights"])
    assert "Count or list weights." in capsys.readouterr().out
    assert "weights count" in completion.flags_by_command()


def test_every_builtin_command_is_its_module():
    for name in registry.builtin_names("command"):
        command = registry.get("command", name)
        assert callable(command.run), name
        assert callable(command.add_arguments), name
        assert command.DESCRIPTION.endswith(("fish", ".", "machine")), name
