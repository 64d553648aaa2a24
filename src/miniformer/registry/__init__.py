"""Registry of components by kind and name, including those of plugins.

A config names a component, such as `norm="rmsnorm"`; the registry imports it. Built-in components
are in `builtin.py`. An installed package lists its own as entry points (`plugins.py`):

    [project.entry-points."miniformer.norm"]
    mynorm = "my_package.norms:MyNorm"

Nothing is imported until `get` is called, so configs can check names without importing torch. All
functions raise a UserError for an unknown kind, and for a name that two packages claim.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from miniformer.registry import plugins
from miniformer.registry.builtin import KINDS, Kind
from miniformer.registry.options import call_with_options
from miniformer.utils.errors import PluginWarning, UserError
from miniformer.utils.names import name_problem

_Component = TypeVar("_Component")
_added_kinds: dict[str, Kind] = {}
_registered: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_skipped: set[tuple[str, str]] = set()  # kind and name of each component that was warned about


def kinds() -> list[str]:
    """Component kinds: `activation`, `norm`, `position`, ..., and those that were added."""
    return [*KINDS, *_added_kinds, *plugins.entry_points_of(plugins.KIND_GROUP, ())]


def add_kind(name: str, interface: str) -> None:
    """Adds a kind in this process; a package uses an entry point in `miniformer.kind` instead.

    Args:
        name: name of the kind, such as `reward`.
        interface: the call of a component of it, such as "(texts) -> [B]".

    Raises:
        UserError: the kind exists, or its name is no identifier.
    """
    if not name.isidentifier() or name == plugins.KIND_GROUP:
        raise UserError(f"component kind {name!r} must be an identifier other than 'kind'")
    if name in kinds():
        raise UserError(f"component kind {name!r} exists already; choose another name")
    _added_kinds[name] = Kind(interface)
    _registered[name] = {}


def interface(kind: str) -> str:
    """The call of a component of `kind` and its result, or its methods."""
    if kind in KINDS or kind in _added_kinds:
        return (KINDS.get(kind) or _added_kinds[kind]).interface
    _check_kind(kind)
    component = plugins.load("kind", plugins.entry_points_of(plugins.KIND_GROUP, ())[kind])
    return component if isinstance(component, str) else first_doc_line(component)


def names(kind: str) -> list[str]:
    """Known names of `kind`: built in, registered in this process, or from a plugin."""
    own = [*builtin_names(kind), *_registered.get(kind, ())]
    return [*own, *plugins.entry_points_of(kind, own)]


def builtin_names(kind: str) -> list[str]:
    """Built-in names of `kind`."""
    _check_kind(kind)
    return list(KINDS[kind].builtin) if kind in KINDS else []


def current_name(kind: str, name: str) -> str:
    """The name that a former name of a built-in part has now; any other name as it is."""
    current = KINDS[kind].former_names.get(name, name) if kind in KINDS else name
    return name if current == name or name in names(kind) else current


@overload
def register(kind: str, name: str) -> Callable[[_Component], _Component]: ...
@overload
def register(kind: str, name: str, component: Any) -> None: ...
def register(kind: str, name: str, component: Any = None) -> Any:
    """Registers a component as `name` in this process; a package uses an entry point instead.

    Without a component it is a decorator: `@register("norm", "mynorm")`.

    Raises:
        UserError: the name is taken, or is not a valid folder name (task names become folders).
    """
    _check_kind(kind)
    if (problem := name_problem(name)) is not None:
        raise UserError(f"{kind} {name!r} cannot be registered: {problem}; choose another name")
    disjoint = KINDS[kind].disjoint if kind in KINDS else None
    for namespace in filter(None, (kind, disjoint)):
        if name in names(namespace):
            raise UserError(
                f"{namespace} {name!r} exists already: {_origin(namespace, name)}; choose another "
                "name"
            )

    def add(component: _Component) -> _Component:
        _registered.setdefault(kind, {})[name] = component
        return component

    return add if component is None else add(component) and None


def get(kind: str, name: str) -> Any:
    """Component of that name, imported on first use.

    Raises:
        UserError: the name is unknown, or the component of a package cannot be imported.
    """
    known = names(kind)
    name = current_name(kind, name)
    if name not in known:
        raise UserError(unknown_name_message(kind, name, known))
    if name in _registered.get(kind, ()):
        return _registered[kind][name]
    if name in builtin_names(kind):
        return plugins.import_path(KINDS[kind].builtin[name])
    return plugins.load(kind, plugins.entry_points_of(kind, ())[name])


def build(
    kind: str, setting: str | Mapping[str, Any], *args: Any, label: str, paths: bool = False
) -> Any:
    """Result of a component that is called with options, such as {"type": "ema", "decay": 0.9}.

    Args:
        kind: the kind.
        setting: the name, or an object with the name as `type`, and the options.
        *args: arguments before the options.
        label: the setting, for errors; see `setting_problems` for checks before.
        paths: the type may be an import path; see `resolve`.

    Raises:
        UserError: the name or an option is unknown, an option is missing, or the component refuses
            a value.
    """
    options = named_options(setting, label)
    name = options.pop("type")
    component = resolve(kind, name) if paths else get(kind, name)
    return call_with_options(component, name, options, *args, label=label)


def named_options(setting: str | Mapping[str, Any], label: str = "setting") -> dict[str, Any]:
    """A setting of `build` as an object with the name as `type`.

    Raises:
        UserError: it is neither a name nor such an object.
    """
    options = {"type": setting} if isinstance(setting, str) else setting
    if not isinstance(options, Mapping) or not isinstance(options.get("type"), str):
        raise UserError(
            f"{label} must be a name, or an object with a name as type, not {setting!r}"
        )
    return dict(options)


def setting_problems(kind: str, settings: Any, *, label: str, paths: bool = False) -> list[str]:
    """Problems of settings of `build`, found without an import: their form and names.

    Args:
        kind, label, paths: see `build`.
        settings: a setting, or a list of settings, which may be empty or None.
    """
    is_list = isinstance(settings, list | tuple)
    items = settings if is_list else [] if settings is None else [settings]
    known = names(kind) if items else []
    problems = []
    for index, setting in enumerate(items):
        field = f"{label}[{index}]" if is_list else label
        name = setting.get("type") if isinstance(setting, Mapping) else setting
        if not isinstance(name, str):
            example = known[0] if known else "package.module:Class" if paths else "name"
            problems.append(
                f"{field} must be a name, or an object with a name as type, such as "
                f'{{"type": "{example}"}}, not {setting!r}'
            )
        elif name not in known and not (paths and ":" in name):
            hint = "; an import path is package.module:Class" if paths else ""
            if not known:
                hint += "; install the package that has it, or register it first"
            message = unknown_name_message(kind.replace("_", " "), name, known)
            problems.append(f"{field}: {message}{hint}")
    return problems


def package_of(kind: str, name: str) -> str | None:
    """Name of the installed package that has a component; None: it is of no package."""
    if name in builtin_names(kind) or name in _registered.get(kind, ()):
        return None
    entry = plugins.entry_points_of(kind, ()).get(name)
    return None if entry is None or entry.dist is None else entry.dist.name


def load_all(kind: str, *, last_first: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields all components of `kind` with their names, each imported when it is reached.

    One that cannot be imported is skipped, with one warning.

    Args:
        kind: the kind.
        last_first: in the reverse order of `names`.
    """
    for name in reversed(names(kind)) if last_first else names(kind):
        try:
            component = get(kind, name)
        except plugins.PluginError as error:
            warn_skipped(error)
        else:
            yield name, component


def warn_skipped(error: plugins.PluginError) -> None:
    """Warns once about a component of a package that cannot be used."""
    if (error.kind, error.name) not in _skipped:
        _skipped.add((error.kind, error.name))
        warnings.warn(f"{error}; it is skipped", PluginWarning, stacklevel=3)


def resolve(kind: str, name: str) -> Any:
    """Component of that name, or the object at an import path such as "my_package.module:Class".

    Import paths are for settings that a user gives, never for those of a model directory. Modules
    of the current folder are found, too.

    Raises:
        UserError: see `get`; or there is no such module or object.
    """
    if ":" not in name or name in names(kind):
        return get(kind, name)
    folder = str(Path.cwd())
    if not {"", folder} & {*sys.path}:
        sys.path.append(folder)
    try:
        return plugins.import_path(name)
    except (Exception, SystemExit) as error:
        reason = plugins.describe_error(error, name.partition(":")[0])
        raise UserError(f"{kind} {name!r} cannot be imported: {reason}") from error


def summary(kind: str, name: str) -> str:
    """A line about a component: the first one of its docstring, which is not imported."""
    if kind in KINDS and name in KINDS[kind].summaries:
        return KINDS[kind].summaries[name]
    if name in _registered.get(kind, ()):
        return first_doc_line(_registered[kind][name])
    if name in builtin_names(kind):
        module, _, attribute = KINDS[kind].builtin[name].partition(":")
        return plugins.read_doc_line(module, attribute)
    return plugins.summary(plugins.entry_points_of(kind, ())[name])


def first_doc_line(component: Any) -> str:
    """First line of a docstring, without a period at its end."""
    return (inspect.getdoc(component) or "").partition("\n")[0].rstrip(".")


def unknown_name_message(label: str, value: object, known: list[str]) -> str:
    """Message for an unknown name, with the closest and all known names."""
    closest = difflib.get_close_matches(str(value), known, n=1)
    hint = f" (did you mean {closest[0]!r}?)" if closest else ""
    return f"unknown {label} {value!r}{hint}; known: {', '.join(known) or 'none'}"


def _origin(kind: str, name: str) -> str:
    """Origin of a component: Miniformer, this process or a package."""
    if name in builtin_names(kind):
        return "it is built in"
    if name in _registered.get(kind, ()):
        component = _registered[kind][name]
        label = getattr(component, "__qualname__", type(component).__qualname__)
        return f"this process has registered {label}"
    return f"it is of {plugins.origin(plugins.entry_points_of(kind, ())[name])}"


def _check_kind(kind: str) -> None:
    if kind not in kinds():
        raise UserError(unknown_name_message("component kind", kind, kinds()))
