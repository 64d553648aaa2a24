"""Selects parts of the slow ring, runs them, and records those that pass."""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.slow import ROOT
from tests.slow.environments import python_of
from tests.slow.parts import PARTS, Part

PASSED = Path(__file__).with_name("passed.json")


def main(arguments: list[str] | None = None) -> int:
    """Runs the ring; returns the exit code: 1 if a part fails."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m tests.slow", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)}; all")
    parser.add_argument(
        "--changed",
        action="store_true",
        help="skip parts whose files have not changed since they passed",
    )
    parser.add_argument(
        "--minutes", type=float, help="skip parts that take longer than the remaining time"
    )
    parser.add_argument("--record", action="store_true", help="record passed parts in passed.json")
    parser.add_argument("--list", action="store_true", help="list the parts and run none")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(names))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(names)}")
    parts = [part for part in PARTS if part.name in options.parts or not options.parts]
    passed = json.loads(PASSED.read_text(encoding="utf-8"))
    if options.list:
        for part in parts:
            state = "as recorded" if passed.get(part.name) == digest(part) else "changed"
            print(f"{part.name:<12}{part.minutes:>3} min  {state:<13}{shlex.join(part.command)}")
        return 0
    failed, left = [], options.minutes
    for part in parts:
        now = digest(part)
        if options.changed and passed.get(part.name) == now:
            print(f"{part.name}: skipped, its files have not changed since it passed")
        elif left is not None and part.minutes > left:
            print(
                f"{part.name}: skipped, CHANGED but not run: it takes about {part.minutes} min, "
                f"and {left:.0f} of {options.minutes:.0f} are left; `make slow` runs it"
            )
        else:
            start_time = time.monotonic()
            ok = run(part)
            minutes = (time.monotonic() - start_time) / 60
            left = None if left is None else max(0.0, left - minutes)
            print(f"{part.name}: {'passed' if ok else 'FAILED'} in {minutes:.1f} min", flush=True)
            if not ok:
                failed.append(part.name)
            elif options.record:
                record(part, now)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def digest(part: Part, root: Path | None = None) -> str:
    """A digest of a part's command and of the names and bytes of the files that it covers.

    Raises:
        FileNotFoundError: a pattern matches no file.
    """
    root = root or ROOT
    hasher = hashlib.sha256("\0".join((*part.command, *part.requirements)).encode())
    files: set[Path] = set()
    for pattern in part.covers:
        matches = {path for path in root.glob(pattern) if path.is_file()}
        files |= {path for path in matches if "__pycache__" not in path.parts}
        if not matches:
            raise FileNotFoundError(f"part {part.name}: no file is {pattern}")
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        hasher.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return hasher.hexdigest()


def run(part: Part) -> bool:
    """Runs a part with the package of this tree; True if it passes."""
    print(f"{part.name}: about {part.minutes} min", flush=True)
    python = python_of(part.name, part.requirements) if part.requirements else sys.executable
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return not subprocess.run(
        [python, *part.command], cwd=ROOT, env=environment, check=False
    ).returncode


def record(part: Part, now: str) -> None:
    """Records that a part passed with files of this digest."""
    passed = json.loads(PASSED.read_text(encoding="utf-8"))
    passed[part.name] = now
    PASSED.write_text(json.dumps(passed, indent=2, sort_keys=True) + "\n", encoding="utf-8")
