"""Faults in `miniformer.exporters.bench`."""

from tests.faults import fault


@fault("miniformer.exporters.bench.measure:_measure")
def runtime_errors_are_hidden(original):
    """An artifact whose runtime fails has no results, without a message."""

    def measure(kind, path, workload):
        from miniformer.config import UserError

        try:
            return original(kind, path, workload)
        except UserError:
            return {}

    return measure


@fault("miniformer.exporters.bench.measure:size_of")
def size_is_that_of_the_folder_entry(original):
    """Sizes are those of the folder's entry."""
    return lambda path: path.stat().st_size


@fault("miniformer.exporters.bench.command:run")
def bench_results_are_not_stored(original):
    """`--json` is ignored."""
    return lambda values: original({**values, "json": None})


@fault("miniformer.exporters.bench.child:ids_below")
def inputs_have_ids_beyond_the_vocabulary(original):
    """Ids are not below the size of the vocabulary."""
    return lambda end, length: [7 * position + 3 for position in range(length)]
