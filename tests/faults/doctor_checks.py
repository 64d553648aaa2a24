"""Faults in the checks of `miniformer doctor`."""

from tests.faults import fault


@fault("miniformer.doctor.outcome:Outcome.to_json")
def problems_are_not_in_json(original):
    """The JSON of a failed check has no problems."""
    return lambda self: {**original(self), "problems": ()}


@fault("miniformer.doctor.subject:Subject.arguments")
def reason_is_dropped(original):
    """A check of a directory runs without one."""

    def arguments(self, check):
        try:
            return original(self, check)
        except Exception:
            return {}

    return arguments


@fault("miniformer.doctor.run_checks:_run")
def broken_files_pass(original):
    """A check that raises a message passes."""

    def run(subject, name, check, command):
        import dataclasses

        outcome = original(subject, name, check, command)
        if name == "files":
            return dataclasses.replace(outcome, status="passed", problems=())
        return outcome

    return run


@fault("miniformer.doctor.run_checks:Note")
def description_of_a_check_is_a_problem(original):
    """Lines with measured numbers count as problems."""

    class Never(str):
        __slots__ = ()

    return Never


@fault("miniformer.doctor.inputs:max_difference")
def fixed_inputs_of_checks(original):
    """Outputs differ by nothing."""
    return lambda outputs, reference: 0.0


@fault("miniformer.doctor.description:describe_model")
def description_lacks_the_cache(original):
    """The bytes of the cache are not reported."""
    return lambda model: [line for line in original(model) if not line.startswith("cache")]


@fault("miniformer.doctor.machine:environment")
def environment_has_paths(original):
    """The report for a bug has the folder of the user."""
    return lambda: {**original(), "folder": __file__}


@fault("miniformer.doctor.page:write_report")
def page_lacks_problems(original):
    """The page shows the checks that passed."""

    def write_report(path, target, description, outcomes):
        passed = [outcome for outcome in outcomes if not outcome.problems]
        return original(path, target, description, passed)

    return write_report


@fault("miniformer.doctor.checks.files:_weight_problems")
def nan_weights_are_fine(original):
    """NaN in weights is no problem."""
    return lambda model: iter(())


@fault("miniformer.doctor.checks.cache:_cached_logits")
def cached_steps_are_compared_with_the_first_position(original):
    """Cached logits are those of one position earlier."""
    return lambda runtime, ids, mask, start: original(runtime, ids, mask, start).roll(1, 1)


@fault("miniformer.doctor.checks.batch:_differences")
def batch_is_compared_with_itself(original):
    """Rows of a batch are compared with themselves."""
    return lambda inputs: iter(())


@fault("miniformer.doctor.checks.gradients:_difference")
def one_direction_of_all_tensors(original):
    """The difference is one-sided, so that it has half of the length."""
    return lambda total, weight, direction: original(total, weight, direction) / 2


@fault("miniformer.doctor.checks.tokenizer:_problems")
def any_round_trip_is_fine(original):
    """Text that changes in a round trip is no problem."""
    return lambda tokenizer: iter(())


@fault("miniformer.doctor.checks.saving:_equal_outputs")
def saved_copy_is_the_model(original):
    """Outputs of the copy are not compared."""
    return lambda model, copied: True


@fault("miniformer.doctor.checks.precision:_decode")
def precision_of_other_tokens(original):
    """Losses are those of newly sampled tokens, at twice the size."""

    def decode(runtime, first, *, count=0, tokens=None):
        sampled, losses = original(runtime, first, count=count, tokens=tokens)
        return sampled, losses if tokens is None else 2 * losses

    return decode


@fault("miniformer.doctor.checks.card:_problems")
def any_card_is_complete(original):
    """A card without a size is complete."""
    return lambda card, model: iter(())


@fault("miniformer.doctor.checks.speed:_decoding")
def speed_of_decoding_is_left_out(original):
    """The speed of decoding is not measured."""
    return lambda inputs: []


@fault("miniformer.exporters.check:DifferenceError")
def difference_of_an_export_is_a_note(original):
    """An export that differs from the model is one that is refused."""

    class Never(Exception):
        pass

    return Never


@fault("miniformer.doctor.checks.files:_task_problems")
def task_may_have_other_outputs(original):
    """A task with other classes than the model is no problem."""
    return lambda pipeline: iter(())


@fault("miniformer.doctor.checks.tokenizer:_compared")
def lost_characters_are_fine(original):
    """A tokenizer that loses characters is no problem."""
    return lambda text: ""
