"""Tests with new examples: `python -m tests.slow.explore [--seed N]`.

Hypothesis and the fuzzer draw from a seed that is printed, so that failures can be reproduced. The
tests with the mark `slow` run as well.
"""

import argparse
import os
import random
import re
import subprocess
import sys

from tests.slow import ROOT

INPUTS = 3000  # of the fuzzer; some minutes
_DRAWS = re.compile(r"^from hypothesis import|^import hypothesis", re.MULTILINE)


def main() -> int:
    """Runs hypothesis, slow tests and the fuzzer; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow.explore", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    seed = parser.parse_args().seed
    print(f"explore: seed {seed}; again: python -m tests.slow.explore --seed {seed}", flush=True)
    environment = {**os.environ, "MINIFORMER_TEST_SEED": str(seed)}
    files = drawing_files()
    commands = {
        "hypothesis": ["-m", "pytest", *files],
        "slow tests": ["-m", "pytest", "-m", "slow", "tests"],
        "fuzzer": ["-m", "tests.fuzz", "--inputs", str(INPUTS), "--seed", str(seed)],
    }
    failed = []
    for name, command in commands.items():
        print(f"{name}: {' '.join(command)}", flush=True)
        code = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, check=False
        ).returncode
        if code and not (name == "slow tests" and code == 5):  # there may be none
            failed.append(name)
    print(f"explore: {'failed: ' + ', '.join(failed) if failed else 'passed'}, seed {seed}")
    return int(bool(failed))


def drawing_files() -> list[str]:
    """The test files that draw examples with hypothesis."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if _DRAWS.search(path.read_text(encoding="utf-8"))
    )


if __name__ == "__main__":
    sys.exit(main())
