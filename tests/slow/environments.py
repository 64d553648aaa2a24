"""Virtual environments of parts that need packages with their own pins.

Each environment extends the one that runs the ring; its own packages come first. Versions are
those of constraints-slow.txt, then of constraints.txt.
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
    """The interpreter of an environment, which is created if missing or outdated."""
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
    """Lines `name==version`; those of `own` replace those of `common`.

    torch is not pinned, so that the installed build stays.
    """
    pins = {}
    for line in (*common.splitlines(), *own.splitlines()):
        pin = _PIN.match(line)
        if pin:
            pins[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[0]
    pins.pop("torch", None)
    return sorted(pins.values())
