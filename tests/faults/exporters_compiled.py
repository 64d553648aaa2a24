"""Faults in `miniformer.exporters.compiled` and in the checks of all exporters."""

from tests.faults import fault


@fault("miniformer.exporters.compiled.write:compare")
def verification_is_skipped(original):
    """The comparison reports success without running what was written."""
    from miniformer.exporters.verify import Comparison

    return lambda source, programs, runs, **sizes: Comparison(0.0, 1.0, 32, 32)


@fault("miniformer.exporters.verify:LIMIT")
def any_difference_is_accepted(original):
    """The limit of differences is 10."""
    return 10.0


@fault("miniformer.exporters.compiled.flat:FlatView.dynamic_shapes")
def programs_have_one_batch_size(original):
    """The batch size of the example is that of the program."""

    def dynamic_shapes(self):
        return tuple({k: v for k, v in shape.items() if k} for shape in original(self))

    return dynamic_shapes


@fault("miniformer.exporters.compiled.write:make_programs")
def names_are_in_the_wrong_order(original):
    """The names of keys and values alternate, unlike the tensors."""

    def make_programs(source):
        return [program._replace(inputs=sorted(program.inputs)) for program in original(source)]

    return make_programs


@fault("miniformer.exporters.compiled.write:atomic_model_directory")
def half_written_folder_is_left(original):
    """Files are written where they stay, whatever happens."""
    import contextlib

    @contextlib.contextmanager
    def atomic_model_directory(directory):
        with original(directory):
            pass
        yield directory

    return atomic_model_directory


@fault("miniformer.exporters.destination:Destination.missing")
def missing_package_is_reported_late(original):
    """A missing package is an error of its import."""
    return lambda self: []


@fault("miniformer.exporters.listing:facts_of")
def every_destination_is_installed(original):
    """The list does not look for the packages of a destination."""

    def facts_of(exporter):
        facts = original(exporter)
        return None if facts is None else facts._replace(packages=())

    return facts_of


@fault("miniformer.exporters.compiled.destinations:export_pt2")
def pt2_is_never_compared(original):
    """The option `verify` is ignored."""
    return lambda directory, out, *, verify=True: original(directory, out, verify=False)


@fault("miniformer.exporters.compiled.pt2:FORMAT")
def pt2_has_another_suffix(original):
    """Files end in .bin."""
    return original._replace(suffix=".bin")


@fault("miniformer.exporters.compiled.aoti:FORMAT")
def example_is_not_written(original):
    """The folder has no C++ program."""
    return original._replace(finish=lambda programs, folder: None)


@fault("miniformer.exporters.compiled.openvino:SETTINGS")
def openvino_computes_in_bfloat16(original):
    """The precision is that which the processor prefers."""
    return {}


@fault("miniformer.exporters.compiled.executorch:make_format")
def executorch_has_other_limits(original):
    """Programs take twice the length that export.json states."""

    def make_format(max_batch, max_length):
        form = original(max_batch, 2 * max_length)
        return form._replace(limits={"batch": max_batch, "length": max_length})

    return make_format


@fault("miniformer.exporters.api:check_options")
def export_options_are_not_checked(original):
    """An option that a destination does not have is an error of Python."""
    return lambda component, name, options, *, num_args, label: None


@fault("miniformer.exporters.compiled.tvm:_DECOMPOSITIONS")
def tvm_lacks_sums_of_booleans(original):
    """Sums of booleans are given to TVM, which adds them without a conversion."""
    return {name: value for name, value in original.items() if "sum" not in str(name)}
