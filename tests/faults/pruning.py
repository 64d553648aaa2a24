"""Faults in `miniformer.compression.pruning`."""

from tests.faults import fault


@fault("miniformer.compression.pruning.removal:_largest")
def removed_heads_are_the_important_ones(original):
    """The parts that stay are the least important ones."""
    return lambda scores, number: original(-scores, number)


@fault("miniformer.compression.pruning.structure:_slice")
def biases_are_of_the_first_columns(original):
    """Biases are cut to their new length."""

    def slice_tensor(weights, name, index, dim=0):
        if name.endswith(".bias") and name in weights:
            weights[name] = weights[name][: len(index)]
        else:
            original(weights, name, index, dim)

    return slice_tensor


@fault("miniformer.compression.pruning.structure:_elements")
def key_heads_are_of_the_first_groups(original):
    """Heads are cut to their new number."""

    def elements(heads, width):
        import torch

        return original(torch.arange(len(heads)), width)

    return elements


@fault("miniformer.compression.pruning.structure:_window_pattern")
def layers_keep_their_windows_by_number(original):
    """A layer that moves forward has the window of its new place."""
    return lambda config, stacks_layers: config.window_pattern


@fault("miniformer.compression.pruning.removal:taylor_scores")
def importance_is_without_gradients(original):
    """Heads and columns are chosen by their weights although there are records."""

    def taylor_scores(pipeline, data):
        from miniformer.compression.pruning.importance import weight_scores

        return weight_scores(pipeline.model)

    return taylor_scores


@fault("miniformer.compression.pruning.importance:_real_positions")
def padding_has_an_influence(original):
    """The influence of a layer counts padding."""
    return lambda batch, declared: {}


@fault("miniformer.compression.pruning.command:run")
def prune_measures_no_loss(original):
    """The command ignores the records that it is given."""

    def run(values):
        part = values["remove"].partition(",layers")[0]
        return original({**values, "data": None, "remove": part})

    return run


@fault("miniformer.compression.pruning.prune:_check_model")
def quantized_models_are_pruned(original):
    """A quantized model is taken."""
    return lambda model: None


@fault("miniformer.compression.pruning.request:count_removed")
def shares_of_none_and_all_are_taken(original):
    """A share that is no part, or all of them, is rounded to one that is possible."""
    return lambda name, share, total: min(max(int(share * total + 0.5), 1), max(total - 1, 1))


@fault("miniformer.compression.source:check_without_transforms")
def models_with_transforms_are_pruned(original):
    """A model with transforms is taken."""
    return lambda model: None


@fault("miniformer.compression.source:effective_state_dict")
def transforms_can_always_be_merged(original):
    """The advice to merge transforms is given without trying."""
    return lambda model: {}


@fault("miniformer.compression.pruning.prune:check_labels")
def layers_ask_for_labels_that_are_refused(original):
    """A model without labels is asked for labeled records."""
    return lambda task, parts: None
