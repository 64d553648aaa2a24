"""Seeded faults: plausible wrong behavior that a test must catch.

    python -m tests.faults [NAME...] [--tests-passed] [--changed] [--record]

A fault replaces one name of the package at run time:

    @fault("miniformer.model.position:apply_rotary")
    def rotary_pairs_neighbors(original):
        \"\"\"Rotary pairs neighboring dimensions instead of halves.\"\"\"
        ...
        return replacement

The test that catches it has `@pytest.mark.catches("rotary_pairs_neighbors")`. An import hook
makes the replacement right after the module has run, so that every importer gets it, in child
processes too. The faults are in the files of this folder, one file a folder of the package.
"""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "MINIFORMER_FAULT"  # child processes install the fault that this names
_SITE = Path(__file__).parent / "site"
_TOOLS = {"plugin", "record", "runner", "selection", "site"}


class BrokenFault(Exception):
    """A fault that does not fit the code: it would be caught for the wrong reason."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A replacement of one name.

    Attributes:
        name: the name of the function that makes the replacement.
        target: `module:attribute`, or `module:Class.attribute`.
        build: gives the replacement, called with the original.
    """

    name: str
    target: str
    build: Callable[[Any], Any]

    @property
    def module(self) -> str:
        """The module that holds the target."""
        return self.target.partition(":")[0]

    @property
    def description(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.build) or self.name).partition("\n")[0]


_FAULTS: dict[str, Fault] = {}


def fault(target: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Registers a fault under the name of the decorated function."""

    def register(build: Callable[[Any], Any]) -> Callable[[Any], Any]:
        name = build.__name__
        if name in _FAULTS:
            raise BrokenFault(f"two faults have the name {name}")
        _FAULTS[name] = Fault(name, target, build)
        return build

    return register


def load() -> dict[str, Fault]:
    """Every fault by name. Imports nothing of the package under test."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in _TOOLS and not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
    return dict(_FAULTS)


def install(name: str) -> None:
    """Arranges that the target of a fault is replaced when its module is imported.

    Child processes do the same: they inherit the environment.

    Raises:
        BrokenFault: there is no fault of that name, or its module is already imported.
    """
    faults = load()
    if name not in faults:
        raise BrokenFault(f"no fault has the name {name}")
    if faults[name].module in sys.modules:
        raise BrokenFault(f"{faults[name].module} is imported before the fault {name}")
    sys.meta_path.insert(0, _Finder(faults[name]))
    os.environ[VARIABLE] = name
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(_SITE) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SITE), *paths]))


class _Finder(PathFinder):
    """Import hook: finds one module as usual and replaces a name after the module has run."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def find_spec(self, fullname, path=None, target=None):  # type: ignore[override]
        if fullname != self.fault.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_replace(module):
            run(module)
            replace(module, self.fault)

        spec.loader.exec_module = run_and_replace
        return spec


def replace(module: Any, fault: Fault) -> None:
    """Replaces the target of a fault in an imported module.

    Raises:
        BrokenFault: the target does not exist, or the replacement takes other parameters.
    """
    *owners, attribute = fault.target.partition(":")[2].split(".")
    owner = module
    try:
        for name in owners:
            owner = getattr(owner, name)
        original = inspect.getattr_static(owner, attribute)
    except AttributeError as error:
        raise BrokenFault(f"{fault.name}: {fault.target} does not exist ({error})") from None
    method = type(original) if isinstance(original, staticmethod | classmethod) else None
    function = original.__func__ if method else original
    replacement = fault.build(function)
    if replacement is function:
        raise BrokenFault(f"{fault.name}: the replacement is the original")
    if inspect.isfunction(function) and inspect.isfunction(replacement):
        _check_parameters(fault, function, replacement)
        replacement = wraps(function)(replacement)
    setattr(owner, attribute, method(replacement) if method else replacement)


def _check_parameters(fault: Fault, original: Any, replacement: Any) -> None:
    """Raises BrokenFault where a call that fits the original would not fit the replacement."""
    signature = inspect.signature(replacement)
    for args, kwargs in _calls(inspect.signature(original)):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BrokenFault(
                f"{fault.name}: the replacement cannot be called as {fault.target} can: {error}"
            ) from None


def _calls(signature: inspect.Signature) -> Iterator[tuple[list[None], dict[str, None]]]:
    """Arguments that fit a signature: all of them or the required ones, by position or by name."""
    kinds = inspect.Parameter
    named = [
        p
        for p in signature.parameters.values()
        if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]
    for given in (named, [p for p in named if p.default is kinds.empty]):
        for by_name in (False, True):
            by_position = (
                (kinds.POSITIONAL_ONLY,)
                if by_name
                else (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
            )
            args = [None for p in given if p.kind in by_position]
            yield args, {p.name: None for p in given if p.kind not in by_position}
