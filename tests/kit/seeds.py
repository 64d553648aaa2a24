"""The seed that tests draw from.

MINIFORMER_TEST_SEED is a number, or `random` for a new one, which is printed. Without it tests draw
the same examples each time.
"""

import os
import random

VARIABLE = "MINIFORMER_TEST_SEED"


def chosen_seed(text=None):
    """The seed's number, or None for the same examples each time.

    Args:
        text: what was asked for; None: what the variable says. A new number is kept there, so that
            child processes draw from it, too.

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
