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


@fault("miniformer.registry.options:_option_problem")
def unknown_options_are_dropped(original):
    """Options that a component does not have are dropped."""

    def option_problem(signature, options, num_args):
        if isinstance(options, dict):
            for name in [*options]:
                if name not in signature.parameters:
                    del options[name]
        return original(signature, options, num_args)

    return option_problem


@fault("miniformer.generation.logits_processors:build_named")
def named_processors_are_ignored(original):
    """Logits processors that decoding settings name are not applied."""
    return lambda settings: []


@fault("miniformer.doctor.__main__:run_checks")
def checks_of_others_do_not_count(original):
    """`doctor` runs its own check only."""
    return lambda subject, names=None, *, target="DIR": original(subject, ["leak"], target=target)


@fault("miniformer.exporters.command:run")
def exporters_get_no_options(original):
    """`export --options` is ignored."""
    return lambda values: original({**values, "options": {}})


@fault("miniformer.cli:make_parser")
def help_imports_every_command(original):
    """`miniformer --help` imports all commands."""

    def make_parser(name, command):
        from miniformer import registry

        list(registry.load_all("command"))
        return original(name, command)

    return make_parser


@fault("miniformer.commands.completion:flags_by_command")
def completion_lacks_commands_of_packages(original):
    """The completion script has the built-in commands only."""

    def flags_by_command():
        from miniformer import registry

        names = registry.builtin_names("command")
        return {key: flags for key, flags in original().items() if key.split()[0] in names}

    return flags_by_command


@fault("miniformer.config.flags.subcommands:make_command_parser")
def command_without_run_does_nothing(original):
    """A command that lacks a function runs nothing, and succeeds."""

    def make_command_parser(name, command, commands=None):
        if not hasattr(command, "run"):
            command.run = lambda values: 0
        return original(name, command, commands)

    return make_command_parser


@fault("miniformer.registry.plugins:_last_line_of")
def error_of_a_plugin_has_no_line(original):
    """The error of a plugin does not name the line that raised it."""
    return lambda error, module: None
