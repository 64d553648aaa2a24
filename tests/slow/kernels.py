"""The decoding kernels built for other processors: `python -m tests.slow.kernels`.

The sources have paths for AVX-512, for AVX2 and for neither. The builds that `-march=native` does
not cover are compiled and tested. Builds that this processor cannot run are skipped with a message.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.slow import ROOT

TESTS = ("tests/unit/runtime/test_native.py", "tests/unit/runtime/rounded")
# Architectures, and the flags in /proc/cpuinfo that they need.
ARCHITECTURES = {"haswell": {"avx2", "fma", "bmi2", "movbe"}, "x86-64": set()}
# Registers that must not occur in the disassembly of a build.
FORBIDDEN = {"haswell": ("%zmm",), "x86-64": ("%zmm", "%ymm")}


def main() -> int:
    """Tests each build; returns the exit code."""
    if platform.machine() != "x86_64":
        print(f"kernels: skipped on {platform.machine()}; these are builds for x86-64")
        return 0
    failed = []
    for architecture, required in ARCHITECTURES.items():
        missing = sorted(required - cpu_flags())
        if missing:
            print(f"{architecture}: skipped, this processor has no {', '.join(missing)}")
            continue
        print(f"{architecture}:", flush=True)
        with tempfile.TemporaryDirectory() as cache:
            environment = {
                **os.environ, "MINIFORMER_KERNELS_ARCH": architecture, "MINIFORMER_CACHE": cache,
            }  # fmt: skip
            code = subprocess.run(
                [sys.executable, "-m", "pytest", *TESTS],
                cwd=ROOT, env=environment, check=False,
            ).returncode  # fmt: skip
            (library,) = Path(cache).glob("*.so")
            forbidden = [word for word in FORBIDDEN[architecture] if word in disassembly(library)]
        if forbidden:
            print(
                f"{architecture}: the build has {', '.join(forbidden)}: it is for another processor"
            )
        if code or forbidden:
            failed.append(architecture)
    print(f"kernels: {'failed for ' + ', '.join(failed) if failed else 'all builds pass'}")
    return int(bool(failed))


def cpu_flags() -> set[str]:
    """CPU flags of this processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def disassembly(library: Path) -> str:
    """The instructions of a library."""
    return subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    sys.exit(main())
