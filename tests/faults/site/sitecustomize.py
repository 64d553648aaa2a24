"""Installs the fault that the environment names in a child process of a test."""

import os
import sys
from pathlib import Path

if os.environ.get("MINIFORMER_FAULT"):
    root = str(Path(__file__).resolve().parents[3])
    sys.path.insert(0, root)
    try:
        from tests.faults import install

        install(os.environ["MINIFORMER_FAULT"])
    finally:
        sys.path.remove(root)
