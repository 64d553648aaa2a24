"""Mutation testing: small random changes of the code, which the tests must notice.

    python -m tests.slow mutations
    .venv-slow/mutations/bin/python -m tests.slow.mutations [MODULE...] [--mutants N] [--seed N]
        [--write]

The changes are those of cosmic-ray's operators: another operator or comparison, a number off by
one, a condition negated, a loop that does not run, a decorator removed. A sample of each module is
taken (`mutants.py`), and the tests of `selection.py` run against a copy of the package with one
change in it (`driver.py`). What no test notices is a survivor. `survivors.json` lists those that
are known, some with the reason why they change nothing that can be promised; a survivor that is
not in it fails.

Why cosmic-ray and not mutmut: mutmut rewrites every function as a set of trampolines, which what
reads signatures, sources and methods of modules sees, and needs one run of all tests before the
first mutant; it is faster per mutant. cosmic-ray gives the source of one mutant at a time, which is
otherwise the package as it is. Its own runner starts a test process from nothing for each mutant;
here they are forked from one that has imported torch.
"""
