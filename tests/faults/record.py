"""Records which faults were caught, and by which files, in `caught.json`."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import ROOT, Fault

CAUGHT = Path(__file__).with_name("caught.json")


def digest(fault: Fault, tests: Sequence[str]) -> str:
    """Digest of a fault's code, of the module that it changes, and of the files of its tests.

    Args:
        fault: the fault.
        tests: pytest arguments of the tests that catch it.
    """
    hasher = hashlib.sha256(inspect.getsource(fault.build).encode())
    hasher.update("\0".join([fault.target, *tests]).encode())
    files = {ROOT / test.partition("::")[0] for test in tests}
    files |= {folder / "conftest.py" for file in files for folder in file.parents}
    for file in sorted({_source(fault.module), *filter(_in_tests, files)}):
        hasher.update(hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()[:16]


def recorded() -> dict[str, str]:
    """Digests of the recorded faults by name."""
    return json.loads(CAUGHT.read_text(encoding="utf-8")) if CAUGHT.exists() else {}


def record(caught: Mapping[str, str], known: Sequence[str]) -> None:
    """Adds digests of caught faults to the record, and removes those of unknown faults."""
    retained = {name: value for name, value in recorded().items() if name in set(known)}
    text = json.dumps({**retained, **caught}, indent=0, sort_keys=True)
    CAUGHT.write_text(text + "\n", encoding="utf-8")


def _source(module: str) -> Path:
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _in_tests(file: Path) -> bool:
    return file.is_relative_to(ROOT / "tests") and file.exists()
