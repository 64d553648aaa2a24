"""Builds the notebooks of `examples` and runs each from its first cell to its last, with nbmake.

`make notebooks` leaves them, with their outputs, in `.notebooks`; `make docs` then shows these.
"""

import shutil
import subprocess
import sys

from tests.slow import ROOT

FOLDER = ROOT / ".notebooks"
SECONDS_PER_CELL = 600  # on a busy machine; a notebook takes at most 90 on two free cores
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def build() -> list[str]:
    """Writes a notebook for each file of `examples` into an empty folder; returns their names."""
    import jupytext

    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    names = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        notebook = jupytext.read(path)
        notebook.metadata["kernelspec"] = KERNEL
        jupytext.write(notebook, FOLDER / f"{path.stem}.ipynb")
        names.append(path.stem)
    return names


def main(arguments: list[str]) -> int:
    """Runs all notebooks, or those that are named; returns the exit code of pytest."""
    names = [name for name in build() if name in arguments or not arguments]
    settings = FOLDER / "pytest.ini"
    settings.write_text("[pytest]\n", encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", settings, "--rootdir", FOLDER, "-p",
         "no:cacheprovider", "-q", "--nbmake", f"--nbmake-timeout={SECONDS_PER_CELL}",
         "--overwrite", "--durations=0", *(FOLDER / f"{name}.ipynb" for name in names)],
        cwd=FOLDER,
        check=False,
    ).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
