"""Runs the tests against mutants and compares what survives with survivors.json."""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from tests.slow import ROOT
from tests.slow.mutations.mutants import Mutant, sample
from tests.slow.mutations.selection import stages
from tests.slow.mutations.survivors import judge

PACKAGE = ROOT / "src" / "miniformer"
FOLDERS = ("model", "generation", "runtime", "tasks", "training")
_PROCESSES = multiprocessing.get_context("forkserver")
# Slow imports that every test process needs. The package is not imported: the mutant comes first.
_PRELOADED = ["pytest", "hypothesis", "anyio.pytest_plugin", "lightning", "transformers"]
_OPTIONS = [
    "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning",
    "--hypothesis-profile=unshrunk",
]  # fmt: skip
# An endless loop may block a process so that no signal reaches it.
_LIMIT_S = 1200.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Result of a mutant: the test that failed, or None if all passed."""

    mutant: Mutant
    killer: str | None


def main(arguments: list[str] | None = None) -> int:
    """Tests mutants, two at a time; returns the exit code: 1 if a survivor is not known."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow.mutations", description=__doc__)
    parser.add_argument("modules", nargs="*", help="patterns below src/miniformer; all if none")
    parser.add_argument("--mutants", type=int, default=4, help="of a module (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="update survivors.json")
    options = parser.parse_args(arguments)
    paths = [path for path in modules() if _chosen(path, options.modules)]
    if not paths:
        parser.error(f"no module in {', '.join(FOLDERS)} fits {' '.join(options.modules)}")
    mutants = [mutant for path in paths for mutant in sample(path, options.mutants, options.seed)]
    print(f"{len(mutants)} mutants of {len(paths)} modules, seed {options.seed}", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as threads:
        verdicts = list(threads.map(test, mutants))
        killers = sorted(
            {verdict.killer for verdict in verdicts if verdict.killer and _is_test(verdict.killer)}
        )
        passing = not killers or _run_tests(PACKAGE.parent, killers, repeat=True) is None
    if not passing:
        print("a test that killed a mutant fails on the package as it is as well")
    results = [(_entry(verdict.mutant), verdict.killer is not None) for verdict in verdicts]
    return max(judge(results, write=options.write), int(not passing))


def _is_test(killer: str) -> bool:
    return "::" in killer and not killer.endswith(" (timeout)")


def modules() -> list[Path]:
    """The modules that are mutated."""
    return sorted(path for folder in FOLDERS for path in (PACKAGE / folder).rglob("*.py"))


def below(path: Path) -> str:
    """A module's path below src/miniformer."""
    return path.relative_to(PACKAGE).as_posix()


def _chosen(path: Path, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch(below(path), pattern) for pattern in patterns)


def test(mutant: Mutant) -> Verdict:
    """Runs the stages of a mutant's module against a copy of the package that holds it."""
    killer = None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "miniformer"
        shutil.copytree(PACKAGE, copy)  # with compiled files: copytree keeps the times
        changed = copy / below(mutant.path)
        changed.unlink()
        changed.write_text(mutant.source, encoding="utf-8")
        for tests in stages(below(mutant.path)):
            killer = _run_tests(Path(folder), tests)
            if killer:
                break
    verdict = Verdict(mutant, killer)
    _print(verdict)
    return verdict


def _run_tests(source: Path, tests: list[str], repeat: bool = False) -> str | None:
    """The test that failed with the package in a folder, or another reason; None if all passed."""
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = _PROCESSES.Process(target=_run, args=(sender, source, tests, Path(folder)))
        process.start()
        sender.close()
        try:
            if not receiver.poll(None if repeat else _LIMIT_S):
                return f"no end within {_LIMIT_S:.0f} s"
            code, failed = receiver.recv()
        except EOFError:
            process.join()
            if process.exitcode == 1:  # an exception of the driver: its traceback is on the screen
                raise RuntimeError("the test process failed") from None
            return f"the process died (exit code {process.exitcode})"
        finally:
            if process.is_alive():
                process.join(5)
                process.kill()
            process.join()
        log = (Path(folder) / "log").read_text(errors="replace")
    if code == 0:
        return None
    if code in (1, 2) or "ImportError while loading conftest" in log:
        return failed or "the package cannot be imported"
    raise RuntimeError(f"pytest ended with exit code {code} for {' '.join(tests)}\n{log[-800:]}")


def _run(sender, source: Path, tests: list[str], folder: Path) -> None:
    """Runs pytest in this process and sends its exit code and the test that failed."""
    gc.freeze()  # excludes preloaded modules from garbage collection
    import pytest

    class First:
        failed = None

        def pytest_runtest_logreport(self, report):
            if report.failed and not self.failed:
                self.failed = report.nodeid
                if "Failed: Timeout" in str(report.longrepr):
                    self.failed += " (timeout)"  # an endless loop, or a busy machine

    if "miniformer" in sys.modules:
        raise RuntimeError("the package is imported before the mutant")
    os.chdir(ROOT)
    paths = [str(source), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.path[:0] = [str(source), str(ROOT)]
    with (folder / "log").open("w") as out, contextlib.suppress(OSError):
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    first = First()
    code = pytest.main([*_OPTIONS, f"--basetemp={folder / 'tmp'}", *tests], [first])
    sys.stdout.flush()
    used = getattr(sys.modules.get("miniformer"), "__file__", str(source))
    if not used.startswith(str(source)):
        raise RuntimeError(f"the tests imported {used}, not the mutant")
    sender.send((int(code), first.failed))


def _entry(mutant: Mutant) -> dict[str, str | None]:
    return {"module": below(mutant.path), "line": mutant.line, "mutation": mutant.mutation}


def _print(verdict: Verdict) -> None:
    mutant = verdict.mutant
    state = f"killed by {verdict.killer}" if verdict.killer else "SURVIVES"
    print(
        f"{below(mutant.path)}: {state}\n    - {mutant.line}\n    + {mutant.mutation}", flush=True
    )
