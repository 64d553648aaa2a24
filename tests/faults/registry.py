"""Faults in `miniformer.registry`."""

from tests.faults import fault


@fault("miniformer.registry:register")
def register_is_no_decorator(original):
    """`register` without a component registers None."""
    return lambda kind, name, component=None: original(kind, name, component or (lambda x: x))


@fault("miniformer.registry:kinds")
def kinds_are_closed(original):
    """A kind that is added stays unknown."""

    def kinds():
        from miniformer.registry.builtin import KINDS

        return list(KINDS)

    return kinds


@fault("miniformer.registry.plugins:KIND_GROUP")
def kinds_of_packages_are_unknown(original):
    """Packages cannot add kinds."""
    return "kinds"


@fault("miniformer.registry:warn_skipped")
def import_of_a_plugin_is_fatal(original):
    """A component that cannot be imported ends every command that could use it."""

    def warn_skipped(error):
        raise error

    return warn_skipped


@fault("miniformer.registry.plugins:entry_points_of")
def last_package_wins_a_name(original):
    """Of two packages that claim a name, the last one silently gets it."""

    def entry_points_of(kind, taken):
        from miniformer.registry import plugins

        return {entry.name: entry for entry in plugins._find_entry_points(kind)}

    return entry_points_of


@fault("miniformer.registry.plugins:_api_problem")
def api_version_is_not_checked(original):
    """A package for another version of the interface is loaded."""
    return lambda entry: None


@fault("miniformer.registry.builtin:KINDS")
def kinds_share_names(original):
    """An activation may have the name of a gated one."""
    return {name: kind._replace(disjoint=None) for name, kind in original.items()}
