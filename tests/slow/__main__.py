"""Entry point of `python -m tests.slow`."""

import sys

from tests.slow.runner import main

sys.exit(main())
