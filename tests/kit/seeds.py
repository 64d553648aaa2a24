"""The random seed of tests.

MINIFORMER_TEST_SEED is a number, or `random` for a new one, which is printed. By default tests draw
the same examples in every run.
"""

import os
import random

VARIABLE = "MINIFORMER_TEST_SEED"


def chosen_seed(text=None):
    """Returns the seed; None: the same examples in every run.

    Args:
        text: a number or `random`; None: the value of the variable. A new seed is stored in the
            variable, so that child processes use it.

    Raises:
        ValueError: it is neither a number nor `random`.
    """
    text = os.environ.get(VARIABLE) if text is None else text
    if not text:
        return None
    if text == "random":
        text = os.environ[VARIABLE] = str(random.SystemRandom().randrange(2**31))
    if not text.isdecimal():
        raise ValueError(f"{VARIABLE} is a number or 'random', not {text!r}")
    return int(text)
