"""Faults in `miniformer.training.trials`."""

import dataclasses
import json

from tests.faults import fault


@fault("miniformer.training.trials.candidates:_model_fields")
def given_settings_are_tried(original):
    """A field of the model is tried although it is given."""

    def _model_fields(run, config, name, alternatives):
        return original(run, dataclasses.replace(config, model_config={}), name, alternatives)

    return _model_fields


@fault("miniformer.training.trials.selection:Difference.is_better")
def noise_decides_trials(original):
    """Any improvement replaces the defaults."""
    return property(lambda self: (self.metric or self.loss) > 0)


@fault("miniformer.training.trials.auto:hold_out")
def trials_see_the_validation_data(original):
    """Trials train on the records that they are evaluated on."""

    def hold_out(records, share):
        _, held_out = original(records, share)
        return records, held_out

    return hold_out


@fault("miniformer.training.trials.auto:share_of_run")
def trials_exceed_their_share(original):
    """The second round of trials is not part of the budget."""

    def share_of_run(seconds, limit):
        return min(0.5, max(0.0, limit / sum(seconds)))

    return share_of_run


@fault("miniformer.training.trials.trial:Trial._loses_text")
def unknown_words_are_comparable(original):
    """The loss of a tokenizer that loses text decides."""

    def _loses_text(self):
        return False

    return _loses_text


@fault("miniformer.training.trials.trial:Trial._evaluate")
def trial_losses_are_means_of_tokens(original):
    """Losses are means of tokens, which depend on the tokenizer."""

    def _evaluate(self, steps):
        result = original(self, steps)
        return dataclasses.replace(result, losses=result.results.losses)

    return _evaluate


@fault("miniformer.training.trials.auto:_Search.to_json")
def choices_are_not_stored(original):
    """trials.json lacks the chosen settings."""

    def to_json(self):
        return {**original(self), "chosen": {}}

    return to_json


@fault("miniformer.training.trials.trial:Trial.has_wide_head")
def wide_heads_are_trained_in_trials(original):
    """The steps of the Transformer take the time of the trials."""
    return property(lambda self: False)


@fault("miniformer.training.trials.auto:choose_settings")
def interrupted_trials_choose_the_defaults(original):
    """A run whose trials are interrupted continues with the defaults."""

    def choose_settings(run, *args, **kwargs):
        try:
            return original(run, *args, **kwargs)
        except (KeyboardInterrupt, SystemExit):
            return run

    return choose_settings


@fault("miniformer.training.resume.config:saved_config")
def choices_are_lost_on_resume(original):
    """A resumed run has the settings from before its trials."""

    def saved_config(run_dir):
        config, path = original(run_dir), run_dir / "trials.json"
        chosen = json.loads(path.read_text())["chosen"] if path.exists() else {}
        return dataclasses.replace(config, **dict.fromkeys(chosen))

    return saved_config
