"""Virtual environments of parts that need packages with pins of their own.

Each lies over the environment that runs the ring: what is installed there is seen here, and what is
installed here comes first. Versions are those of constraints-slow.txt, then of constraints.txt.
"""

import hashlib
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.slow import ROOT

FOLDER = ROOT / ".venv-slow"
_PIN = re.compile(r"([A-Za-z0-9._-]+)==\S+")


def python_of(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of an environment, made where it is missing or its requirements changed."""
    folder = FOLDER / name
    python, ready = folder / "bin" / "python", folder / "ready"
    pins = constraints(
        (ROOT / "constraints.txt").read_text(encoding="utf-8"),
        (ROOT / "constraints-slow.txt").read_text(encoding="utf-8"),
    )
    state = hashlib.sha256("\n".join((sys.prefix, *requirements, *pins)).encode()).hexdigest()
    if python.exists() and ready.exists() and ready.read_text() == state:
        return python
    print(f"installing {', '.join(requirements)} into {folder.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    below = sysconfig.get_path("purelib")
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c",
         folder / "constraints.txt", *requirements],
        check=True,
    )  # fmt: skip
    ready.write_text(state)
    return python


def constraints(common: str, own: str) -> list[str]:
    """Lines `name==version`; those of `own` take the place of those of `common`.

    torch has none: the one that is installed stays, whichever build it is.
    """
    found = {}
    for line in (*common.splitlines(), *own.splitlines()):
        pin = _PIN.match(line)
        if pin:
            found[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[0]
    found.pop("torch", None)
    return sorted(found.values())
