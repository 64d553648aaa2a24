"""Runs the tests that catch each fault, with the fault installed: `python -m tests.faults`.

Names choose faults; without names all are run. A fault that no test catches (MISSED), or that does
not fit the code (BROKEN), makes the exit code 1. At the end the tests run without a fault, since a
test that fails anyway catches nothing; `--tests-passed` leaves this out. `--changed` skips faults
that are recorded as caught and whose files are the same; `--record` records those that are caught.
"""

import argparse
import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from tests.faults import ROOT, Fault, load, record
from tests.faults.selection import catching_tests

_PROCESSES = multiprocessing.get_context("forkserver")
# Slow imports that every test process needs. Nothing of the package itself: the fault comes first.
_PRELOADED = [
    "pytest", "hypothesis", "anyio.pytest_plugin", "lightning", "transformers.modeling_utils",
    "sklearn.linear_model",
]  # fmt: skip
_OPTIONS = [
    "-q",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "--hypothesis-profile=unshrunk",
    "--timeout=300",
    "-m",
    "catches",  # marked tests only, slow ones too
]


def main() -> int:
    """Checks faults, two at a time; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="faults; all if none is named")
    parser.add_argument("--tests-passed", action="store_true", help="skip the run without a fault")
    parser.add_argument("--changed", action="store_true", help="skip recorded, unchanged faults")
    parser.add_argument("--record", action="store_true", help="record caught faults in caught.json")
    arguments = parser.parse_args()
    faults = load()
    unknown = [name for name in arguments.names if name not in faults]
    if unknown:
        parser.error(f"no fault has the name {', '.join(unknown)}")
    tests = catching_tests()
    chosen = [faults[name] for name in arguments.names or faults]
    digests = {x.name: record.digest(x, tests[x.name]) for x in chosen if x.name in tests}
    if arguments.changed:
        before = record.recorded()
        changed = [x for x in chosen if before.get(x.name, "") != digests.get(x.name)]
        print(f"{len(chosen) - len(changed)} of {len(chosen)} faults are unchanged and skipped")
        chosen = changed
        if not chosen:
            return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "passive"
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        logs = [Path(folder) / str(number) for number in range(len(chosen))]
        needed = [tests.get(fault.name, []) for fault in chosen]
        missed: list[str] = []
        caught: dict[str, str] = {}
        results = threads.map(_checked, chosen, needed, logs)
        for fault, (outcome, reason) in zip(chosen, results, strict=True):
            if outcome == "caught":
                caught[fault.name] = digests[fault.name]
            else:
                missed.append(f"{outcome} {fault.name}: {reason}")
            print(f"{outcome:<8}{fault.name}: {fault.description}", flush=True)
            if reason:
                print(f"        {reason}", flush=True)
        if arguments.record:
            record.record(caught, list(faults))
        # Again, since hundreds of lines separate them from the end.
        print(
            "\n".join([*missed, f"{len(chosen) - len(missed)} of {len(chosen)} faults are caught"])
        )
        if not missed and not arguments.tests_passed:
            every = sorted({test for several in needed for test in several})
            code, _, _, printed = _in_own_process(None, every, Path(folder) / "without")
            if code != 0:
                print(f"tests fail without a fault as well:\n{printed}")
                return 1
            print("the tests pass without a fault")
    return int(bool(missed) or not chosen)


def _checked(fault: Fault, tests: list[str], log: Path) -> tuple[str, str]:
    """The outcome, caught, MISSED or BROKEN, and the reason where it is not caught."""
    if not tests:
        return "MISSED", "no test is marked with catches()"
    try:
        code, failed, broken, printed = _in_own_process(fault.name, ["-x", *tests], log)
        if code == 1 and not (failed or broken):
            # A fixture failed, as one that starts several processes may on a loaded machine.
            code, failed, broken, printed = _in_own_process(fault.name, ["-x", *tests], log)
    except RuntimeError as error:
        return "MISSED", f"{error}\n{_end(log)}"
    if broken:
        return "BROKEN", broken[0]
    if code == 1 and failed:
        return "caught", ""
    return "MISSED", f"not caught by {' '.join(tests)} (pytest's exit code {code})\n{printed}"


def _in_own_process(
    fault: str | None, tests: list[str], log: Path
) -> tuple[int, list[str], list[str], str]:
    """Exit code, failed tests, reasons why the fault is broken, and the end of the output."""
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_run, args=(sender, fault, tests, log))
    process.start()
    sender.close()
    try:
        code, failed, broken = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the test process died (exit code {process.exitcode})") from None
    finally:
        process.join()
    return code, failed, broken, _end(log)


def _run(sender, fault: str | None, tests: list[str], log: Path) -> None:
    """Runs pytest in this process and sends the result."""
    gc.freeze()  # the garbage collector skips preloaded objects
    import pytest

    from tests.faults.plugin import Outcomes

    os.chdir(ROOT)
    os.environ.pop("PYTEST_ADDOPTS", None)  # options of an outer run, such as its workers
    # The package of this tree, in child processes too.
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    outcomes = Outcomes()
    with log.open("w") as out, contextlib.suppress(OSError):
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    options = [*_OPTIONS, "-p", "tests.faults.plugin", f"--basetemp={log}.tmp"]
    options += ["--fault", fault] if fault else []
    code = pytest.main([*options, *tests], [outcomes])
    sys.stdout.flush()
    sender.send((int(code), outcomes.failed, outcomes.broken))


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-800:] if log.exists() else ""
