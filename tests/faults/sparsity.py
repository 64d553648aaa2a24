"""Faults in zeros of weights, distillation and healing."""

from tests.faults import fault


@fault("miniformer.compression.pruning.magnitude:magnitude_mask")
def magnitude_is_by_row(original):
    """A share is that of each row."""

    def magnitude_mask(weight, sparsity):
        import torch

        return torch.cat([original(row[None], sparsity) for row in weight])

    return magnitude_mask


@fault("miniformer.compression.pruning.magnitude:two_of_four")
def two_of_four_are_outputs(original):
    """Two of each four outputs of a column are zero, where the outputs are a multiple of four."""

    def two_of_four(scores):
        if len(scores) % 4:
            return original(scores.flip(1))
        return original(scores.T.contiguous()).T

    return two_of_four


@fault("miniformer.compression.pruning.magnitude:wanda_mask")
def wanda_norms_are_of_outputs(original):
    """Weights are multiplied by norms of outputs, which changes no order within a row."""

    def wanda_mask(weight, moments, sparsity):
        import torch

        return original(weight, torch.eye(len(moments), dtype=moments.dtype), sparsity)

    return wanda_mask


@fault("miniformer.compression.pruning.sparsegpt:inverse_factor")
def sparsegpt_carries_no_error(original):
    """Errors of a column change no other column."""

    def inverse_factor(hessian):
        import torch

        return torch.diag(original(hessian).diagonal())

    return inverse_factor


@fault("miniformer.compression.pruning.sparsity:input_moments")
def inputs_are_those_of_the_dense_model(original):
    """Layers are pruned by the inputs from layers that are not pruned."""
    first = {}

    def input_moments(model, modules, data):
        import copy

        before = first.setdefault(id(data), copy.deepcopy(model))
        return original(before, {name: before.get_submodule(name) for name in modules}, data)

    return input_moments


@fault("miniformer.compression.pruning.sparsity:count_zeros")
def zeros_are_counted_in_all_matrices(original):
    """The number of weights is that of the model."""

    def count_zeros(model, sparsity, method):
        import dataclasses

        total = sum(x.numel() for x in model.parameters())
        return dataclasses.replace(original(model, sparsity, method), num_weights=total)

    return count_zeros


@fault("miniformer.compression.pruning.sparsity:_check_share")
def shares_of_all_weights_are_taken(original):
    """A share may be none or all of the weights."""
    return lambda matrix, sparsity, method: None


@fault("miniformer.compression.pruning.prune:prune")
def prune_chooses_by_the_data(original):
    """Weights are chosen by the records of the loss."""
    return lambda model, out, **options: original(model, out, **{**options, "calibrate": None})


@fault("miniformer.compression.pruning.weight_masks:MaskedWeights.apply")
def zeros_are_not_restored_after_a_step(original):
    """Only gradients are masked."""
    return lambda self: None


@fault("miniformer.compression.pruning.weight_masks:MaskedWeights.__init__")
def masks_are_of_the_other_weights(original):
    """The weights that are not zero stay as they are."""

    def init(self, parameters, zeros):
        original(self, parameters, {name: ~zero for name, zero in zeros.items()})

    return init


@fault("miniformer.compression.pruning.weight_masks:MaskedWeights._gradient_hook")
def masked_gradients_are_counted(original):
    """Only weights are masked."""
    return lambda self, name: lambda gradient: None


@fault("miniformer.compression.pruning.healing:healed_model")
def healing_changes_the_zeros(original):
    """The model is trained without masks."""
    return lambda *args, has_zeros=False, **options: original(*args, **options)


@fault("miniformer.compression.pruning.healing:healed_model")
def healing_advises_settings_of_train(original):
    """A loss that is not finite has the advice of `train`."""

    def healed_model(*arguments, **options):
        from miniformer.config import UserError

        try:
            return original(*arguments, **options)
        except UserError as error:
            raise error.__context__ from None

    return healed_model


@fault("miniformer.compression.pruning.healing:healed_model")
def healed_weights_are_not_written(original):
    """The pruned model is written as it was."""
    return lambda pruned, teacher, records, steps=None, **options: pruned.model


@fault("miniformer.compression.distillation:divergence")
def the_temperature_has_no_factor(original):
    """The term is smaller with a higher temperature."""
    return lambda student, teacher, temperature: (
        original(student, teacher, temperature) / temperature**2
    )


@fault("miniformer.compression.distillation:Distillation._output_divergence")
def distillation_includes_padding(original):
    """Outputs of padding count as others."""
    return lambda self, student, teacher, batch: original(self, student, teacher, {})


@fault("miniformer.compression.distillation:checkpoint")
def gradients_of_chunks_are_lost(original):
    """Only the head learns from the logits of several chunks."""

    def checkpoint(function, *args, use_reentrant=None, **options):
        features, targets = args
        return function(features.detach() + 0 * features, targets)

    return checkpoint


@fault("miniformer.compression.distillation:Distillation._teacher_on")
def the_teacher_is_trained(original):
    """The teacher is the model itself."""
    return lambda self, model: model


@fault("miniformer.compression.distillation:check_teacher")
def teachers_of_other_classes_are_taken(original):
    """Any teacher is taken."""
    return lambda teacher, model, task, tokenizer: None


@fault("miniformer.training.loss.terms:LossTerms._observed")
def distillation_is_a_pass_of_its_own(original):
    """Terms do not see the pass of the task's loss."""
    return lambda self, model: model


@fault("miniformer.compression.pruning.sparsity:input_moments")
def infinite_inputs_are_calibration(original):
    """Matrices whose inputs are infinite are pruned by magnitude, without a word."""

    def input_moments(model, modules, data):
        from miniformer.config import UserError

        try:
            return original(model, modules, data)
        except UserError:
            return {}

    return input_moments


@fault("miniformer.training.in_memory:ProgressCallback")
def healing_shows_no_progress(original):
    """A run in memory prints nothing between its start and its end."""

    def callback(*args, **options):
        import lightning as L

        return L.Callback()

    return callback


@fault("miniformer.compression.pruning.prune:with_fields")
def records_need_no_tokenizer(original):
    """A model without a tokenizer is pruned by texts until it encodes one."""
    return lambda pipeline, fields, **data: original(pipeline, fields)
