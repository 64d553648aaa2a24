"""Faults in `miniformer compare`."""

import contextlib
import dataclasses

from tests.faults import fault


@fault("miniformer.compression.comparison.compare:_evaluate")
def compare_swaps_the_models(original):
    """Differences are those of the first model from the others."""

    def evaluate(first, paths, data, num_resamples, report, fields):
        metrics, differences, types = original(first, paths, data, num_resamples, report, fields)
        swapped = [
            {
                name: dataclasses.replace(x, difference=-x.difference, low=-x.high, high=-x.low)
                for name, x in changes.items()
            }
            for changes in differences
        ]
        return metrics, swapped, types

    return evaluate


@fault("miniformer.compression.comparison.compare:_describe_speed")
def slower_models_are_as_fast(original):
    """A slower model is called as fast as the first one."""
    return lambda ratio: original(max(ratio, 1.0))


@fault("miniformer.compression.comparison.command:run")
def compare_command_ignores_rounds(original):
    """The command measures three times, whatever its flag says."""
    return lambda values: original({**values, "rounds": 3})


@fault("miniformer.compression.comparison.speeds:_summarize")
def ratios_of_speeds_are_turned(original):
    """A faster model has a ratio below 1."""

    def summarize(times, workload, number, memory):
        speed = original(times, workload, number, memory)
        return dataclasses.replace(speed, ratios={n: 1 / x for n, x in speed.ratios.items()})

    return summarize


@fault("miniformer.compression.comparison.speeds:measure_speeds")
def the_first_round_is_counted(original):
    """The first round, in which models are slow, is one of the measured ones."""

    def measure_speeds(directories, workload, *, rounds=3, threads=0):
        from miniformer.compression.comparison import speeds

        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(speeds._Process(path, threads)) for path in directories
            ]
            for process in processes:
                process.read()
            times = [speeds._measure(processes, workload, turn) for turn in range(rounds)]
            return [
                speeds._summarize(times[:1], workload, number, process.memory)
                for number, process in enumerate(processes)
            ]

    return measure_speeds


@fault("miniformer.compression.comparison.speeds:_Process.read")
def children_hide_their_errors(original):
    """A process that has ended is an error without its message."""

    def read(self):
        from miniformer.config import UserError

        try:
            return original(self)
        except UserError:
            raise UserError(f"{self.directory}: cannot be measured") from None

    return read


@fault("miniformer.compression.comparison.measured_process:run")
def generated_texts_end_early(original):
    """Texts may end before the number of tokens."""

    def run(pipeline, inputs, tokens):
        if not tokens:
            return original(pipeline, inputs, tokens)
        return pipeline.generate(inputs, max_new_tokens=max(1, tokens - 1), temperature=0.0)

    return run


@fault("miniformer.compression.comparison.workload:_input_of")
def prompts_are_whole_texts(original):
    """A language model continues whole texts."""
    return lambda record, generates: original(record, False)


@fault("miniformer.compression.comparison.after:print_comparison")
def commands_compare_in_the_other_order(original):
    """The written model is what the first one is compared with."""
    return lambda first, second, data: original(second, first, data)


@fault("miniformer.compression.comparison.after:print_exit_comparison")
def exits_are_compared_with_themselves(original):
    """The comparison of exits has the model with exits twice."""

    def print_exit_comparison(directory, data):
        from miniformer.compression.comparison import after

        after.print_comparison(directory, directory, data)

    return print_exit_comparison


@fault("miniformer.compression.command:run")
def no_compare_has_no_effect(original):
    """The models are compared all the same."""
    return lambda values: original({**values, "no_compare": False})
