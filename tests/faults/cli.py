"""Faults in the commands: `miniformer.cli`, `trainer` and `commands`."""

from tests.faults import fault


@fault("miniformer.config.command_line:command_context")
def user_errors_exit_with_0(original):
    """A user's mistake is printed, and the exit code is that of success."""
    import contextlib

    @contextlib.contextmanager
    def command_context():
        with original() as command:
            yield command
        command.code = 0

    return command_context


@fault("miniformer.config.command_line:discard_closed_output")
def a_closed_pipe_is_an_error(original):
    """A closed pipe ends a command with a traceback."""
    return lambda: False


@fault("miniformer.config.flags.problems:_suggest_name")
def unknown_flag_gets_no_suggestion(original):
    """The nearest flag is not named."""
    return lambda name, known: original(name, [])


@fault("miniformer.commands.inputs:_parse_json_input")
def lines_of_standard_input_are_not_numbered(original):
    """Messages on standard input name line 0."""
    import re

    def parse(line, location, task, mapper):
        return original(line, re.sub(r":\d+", ":0", location), task, mapper)

    return parse


@fault("miniformer.commands.generate:run")
def answer_is_glued_to_its_source(original):
    """`generate` prints the source of a seq2seq model before its answer."""

    def run(values):
        from miniformer.checkpoint.pipeline import Pipeline

        method, Pipeline.continues_prompts = Pipeline.continues_prompts, lambda self: True
        try:
            return original(values)
        finally:
            Pipeline.continues_prompts = method

    return run


@fault("miniformer.commands.demo:_write_data")
def demo_overwrites_other_files(original):
    """The demo overwrites existing files with its data."""

    def write_data(texts, work_dir, console):
        folder = work_dir / "demo-data"
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    return write_data


@fault("miniformer.commands.score:run")
def score_ignores_its_stride(original):
    """`score` ignores the given stride."""
    return lambda values: original({**values, "stride": 1})


@fault("miniformer.commands.tokenizer:_iter_texts")
def tokenizer_learns_from_the_first_field_only(original):
    """`tokenizer train` reads one field of each record."""

    def texts(records, fields, progress):
        return original(records, fields[:1], progress)

    return texts


@fault("miniformer.trainer:report_result")
def interrupted_run_exits_with_0(original):
    """A run that a signal ended exits as if it were complete."""
    return lambda result, console: original(result, console) * 0


@fault("miniformer.commands.verify_resume:run")
def verify_resume_exits_with_0(original):
    """`verify-resume` exits with 0 where the runs differ."""
    return lambda values: original(values) * 0


@fault("miniformer.commands.import_hf:run")
def import_ignores_max_seq_len(original):
    """`import --max_seq_len` does nothing."""
    return lambda values: original({**values, "max_seq_len": None})


@fault("miniformer:__getattr__")
def misspelled_public_name_is_none(original):
    """A name that the package does not have is None."""

    def getattr_(name):
        try:
            return original(name)
        except AttributeError:
            return None

    return getattr_


@fault("miniformer.commands.predict:_predict_chunk")
def one_bad_input_stops_the_others(original):
    """An input that cannot be predicted leaves all others without a prediction."""

    def predict_chunk(chunk, predict, writer, values):
        from miniformer.config import InputError

        def predict_all_or_none(inputs):
            try:
                return predict(inputs)
            except InputError as error:
                raise InputError(dict.fromkeys(range(len(inputs)), "is bad")) from error

        return original(chunk, predict_all_or_none, writer, values)

    return predict_chunk


@fault("miniformer.commands.predict:_summary")
def predict_counts_errors_as_predictions(original):
    """The number of predictions is that of the inputs."""
    return lambda values, num_inputs, num_problems: original(values, num_inputs, 0)


@fault("miniformer.commands.inputs:_parse_lines")
def lines_of_inputs_end_at_any_separator(original):
    """Inputs are split at U+2028 and the like, which JSON allows within a string."""

    def parse_lines(lines, name, task, **options):
        texts = (raw.decode() if isinstance(raw, bytes) else raw for raw in lines)
        yield from original("".join(texts).splitlines(keepends=True), name, task, **options)

    return parse_lines


@fault("miniformer.commands.inputs:_read_records")
def records_after_an_invalid_one_are_lost(original):
    """A file is read up to its first invalid record."""

    def read_records(records, field):
        for item in original(records, field):
            yield item
            if item.problem is not None:
                return

    return read_records


@fault("miniformer.commands.outputs:check_output")
def data_is_overwritten_by_results(original):
    """A file that is read may be written."""
    return lambda flag, path, inputs: None


@fault("miniformer.commands.outputs:Writer._row")
def kept_fields_are_overwritten(original):
    """A kept label is replaced by the predicted one."""

    def row(self, record, prediction):
        created = original(self, record, prediction)
        return {name.removeprefix("predicted_"): value for name, value in created.items()}

    return row


@fault("miniformer.commands.outputs:format_prediction")
def labels_are_printed_without_probabilities(original):
    """Predictions of several labels have no probabilities, unless all are asked for."""

    def format_prediction(prediction, scores, top_k):
        result = original(prediction, scores, top_k)
        if isinstance(result, dict) and "labels" in result and scores == "top":
            result.pop("scores", None)
        return result

    return format_prediction


@fault("miniformer.commands.models:round_numbers")
def predictions_have_17_digits(original):
    """Numbers are not rounded."""
    return lambda value: value


@fault("miniformer.tasks.common.sequence_input:InputTask.predict_outputs")
def predictions_are_in_order_of_length(original):
    """Predictions of batches are not put back into the order of the inputs."""

    def predict_outputs(self, model, tokenizer, inputs, **options):
        outputs = original(self, model, tokenizer, inputs, **options)
        order = sorted(range(len(inputs)), key=lambda row: len(inputs[row]))
        return None if outputs is None else outputs[order]

    return predict_outputs


@fault("miniformer.commands.data:_MAX_BATCH_TOKENS")
def data_check_suggests_large_batches(original):
    """`data check` suggests batches of sixteen times the tokens."""
    return 16 * original


@fault("miniformer.commands.data:_suggest_settings")
def data_check_suggests_one_of_the_files(original):
    """The command that `data check` suggests trains on the first file only."""

    def suggest_settings(split, unit, options):
        return original(split, unit, {**options, "files": options["files"][:1]})

    return suggest_settings


@fault("miniformer.config.command_line:reject_file_name")
def file_name_is_taken_as_text(original):
    """The name of a file is taken as the text itself."""
    return lambda text, argument, command, hint="": None


@fault("miniformer.cli:main")
def bare_command_is_an_error(original):
    """`miniformer` without arguments is an error, not the help."""
    return lambda argv=None: 2 if argv == [] else original(argv)


@fault("miniformer.config.command_line:_HelpFormatter.add_usage")
def usage_lists_every_flag(original):
    """The usage line of `train --help` lists all flags."""
    import argparse

    def add_usage(self, usage, actions, *args, **kwargs):
        return argparse.HelpFormatter.add_usage(self, usage, actions, *args, **kwargs)

    return add_usage


@fault("miniformer.config.command_line:add_config_flags")
def help_has_no_groups(original):
    """`--help` lists all flags under one heading."""

    def add_config_flags(parser, config, *, skip=(), usual=()):
        parser.add_class_arguments(config, skip=set(skip), fail_untyped=False)

    return add_config_flags


@fault("miniformer.config.command_line:_HelpFormatter._get_help_string")
def help_shows_no_default(original):
    """`--help` leaves defaults out."""
    return lambda self, action: action.help


@fault("miniformer.config.command_line:_files_as_flag")
def files_are_read_before_flags_only(original):
    """Files behind a flag are no training data."""

    def files_as_flag(parser, argv):
        if argv and argv[0].startswith("-"):
            return argv
        return original(parser, argv)

    return files_as_flag


@fault("miniformer.config.flags.reference:config_template")
def printed_config_leaves_given_flags_out(original):
    """`--print_config` prints the defaults."""
    return lambda config, values: original(config, {})


@fault("miniformer.utils.streams:make_console")
def quiet_prints_progress(original):
    """`--quiet` prints as much as without it."""
    return lambda *, quiet=False: original()


@fault("miniformer.training.setup.estimate:dry_run")
def dry_run_writes_a_run_folder(original):
    """`--dry_run` creates the run folder."""

    def dry_run(config, console, in_memory=None):
        from pathlib import Path

        Path(config.work_dir).mkdir()
        return original(config, console, in_memory)

    return dry_run


@fault("miniformer.config.flags.problems:_object_problem")
def broken_object_is_only_no_object(original):
    """Of a broken object it is said only that it is none."""
    return lambda text: ""


@fault("miniformer.commands.completion:allowed_values")
def completion_knows_no_values(original):
    """Values of flags are not completed."""
    return lambda field: []


@fault("miniformer.commands.generate:help_defaults")
def help_shows_no_default_of_the_directory(original):
    """`generate DIR --help` shows the defaults of the config class."""
    return lambda args: {}


@fault("miniformer.config.flags.spelling:normalize_flags")
def hyphens_in_flags_are_unknown(original):
    """`--max-steps` is an unknown flag."""
    return lambda parser, argv: argv


@fault("miniformer.config.flags.spelling:reject_switch_values")
def switches_take_values(original):
    """`--quiet true` reads a file of the name true."""
    return lambda parser, argv: None
