"""Faults in `miniformer.training.loss` and in the terms and examples of tasks."""

from tests.faults import fault


@fault("miniformer.tasks.loss_terms:count_ratio")
def terms_have_the_count_of_the_loss(original):
    """A term is divided by the count of the loss instead of its own."""

    def count_ratio(count, own):
        return original(count, own) * 0 + 1

    return count_ratio


@fault("miniformer.training.loss.passes:TrainingPasses._add_gradients")
def gradients_of_accumulated_terms_are_lost(original):
    """With accumulation, terms with their own counts have no gradient."""
    return lambda self, name, scale: None


@fault("miniformer.training.loss.passes:TrainingPasses._add")
def sums_are_those_of_the_last_batch(original):
    """Terms and statistics of a step are those of its last batch."""

    def _add(sums, key, value):
        sums[key] = value

    return _add


@fault("miniformer.training.distributed.strategies:sum_over_ranks")
def terms_are_not_reduced(original):
    """Each device has its own sums of terms."""
    return lambda tensors: None


@fault("miniformer.training.distributed.strategies:average_over_ranks")
def own_passes_are_not_averaged(original):
    """Each device steps with the gradients of its own passes."""
    return lambda gradients: None


@fault("miniformer.training.loss.terms:LossTerms.load_state_dict")
def states_of_terms_are_not_restored(original):
    """A resumed run has terms in their first state."""
    return lambda self, states: None


@fault("miniformer.training.loss.context:StepContext.add_remaining_terms")
def own_step_leaves_out_terms_of_the_run(original):
    """Terms of the settings are ignored by a task with its own step."""
    return lambda self: None


@fault("miniformer.training.loss.context:StepContext._scaled")
def repeated_batches_count(original):
    """Terms of a batch that another device has, too, count twice."""
    return lambda self, term: term


@fault("miniformer.training.loss.terms:LossTerms.eval_metrics")
def validation_terms_are_of_the_first_batch(original):
    """A term of a validation is that of its first batch."""
    return lambda self, batch_stats: original(self, batch_stats[:1])


@fault("miniformer.tasks.helper_models:HelperModels.__getstate__")
def copies_of_a_task_hold_its_teacher(original):
    """A task that is copied to another process takes its helper models along."""
    return lambda self: dict(vars(self))


@fault("miniformer.tasks.common.losses:example_token_losses")
def example_losses_count_padding(original):
    """Positions without a label count in the losses of examples."""

    def example_token_losses(model, features, labels, label_smoothing=0.0):
        return original(model, features, labels.clamp_min(0), label_smoothing)

    return example_token_losses


@fault("miniformer.tasks.classification:Classification.example_losses")
def example_losses_ignore_class_weights(original):
    """Class weights have no effect on the losses of examples."""
    import dataclasses

    def example_losses(self, model, batch):
        return original(dataclasses.replace(self, class_weights=None), model, batch)

    return example_losses


@fault("miniformer.tasks.common.example_gradients:_plain_attention")
def attention_stays_plain(original):
    """Attention is eager after the gradients of examples."""
    import contextlib

    @contextlib.contextmanager
    def plain_attention(model):
        for layer in model.layers:
            layer.attention.backend = "plain"
        yield

    return plain_attention
