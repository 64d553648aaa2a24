"""The slow ring: checks that take too long, or need too much, for every change.

    python -m tests.slow [PART...] [--changed] [--minutes N] [--record] [--list]

The parts are listed in `parts.py`. A part names the files that it covers. With `--record`, a part
that passes leaves the digest of these files in `passed.json`, which is committed; `--changed` then
skips the part until one of the files changes. A part that needs packages with their own pins
runs in an environment below `.venv-slow`, which is created on first use.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository; the package is not imported
