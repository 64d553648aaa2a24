"""Entry point of `python -m tests.slow.mutations`."""

import sys

from tests.slow.mutations.driver import main

sys.exit(main())
