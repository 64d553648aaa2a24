"""Memory that is freed goes back to the system."""

import json
import sys

import pytest

from tests.kit import run_python

SCATTERED = """
import json
from pathlib import Path
from miniformer.utils.memory import release_freed_memory

def resident():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024

blocks = [bytearray(60_000) for _ in range(1_000)]
blocks = blocks[::20]  # freed memory between blocks that stay
before = resident()
release_freed_memory()
print(json.dumps(before - resident()))
"""


@pytest.mark.catches("freed_memory_stays_with_the_process")
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_freed_memory_between_used_blocks_is_released():
    result = run_python("-c", SCATTERED)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) > 40_000_000
