"""Faults of early exits: `training/loss/exits`, `model/layer_exits`, `config/early_exit`."""

from tests.faults import fault


@fault("miniformer.model.stack:Stack.run_layers")
def exits_skip_the_final_norm(original):
    """The head reads the output of a layer without the final norm."""

    def run_layers(self, x, **options):
        if self.exits is not None and self.exits._replayed is not None:
            return self.exits.start_pass()
        return original(self, x, **options)

    return run_layers


@fault("miniformer.model.layer_exits:LayerExits.replay")
def exits_are_one_layer_late(original):
    """An exit reads the output of the layer after it."""
    return lambda self, num_layers: original(self, num_layers + 1 if num_layers else 0)


@fault("miniformer.model.layer_exits:LayerExits.after_layer")
def layers_are_skipped_in_evaluation(original):
    """Rows skip layers in evaluation, too."""
    return lambda self, index, x, out, *, training: original(self, index, x, out, training=True)


@fault("miniformer.training.loss.exits:ExitLosses.loss")
def exit_losses_are_only_logged(original):
    """Losses of exits have no gradient."""

    def loss(self, task, model, batch):
        result, terms = original(self, task, model, batch)
        return result, {name: term._replace(weight=0.0) for name, term in terms.items()}

    return loss


@fault("miniformer.config.early_exit:EarlyExitConfig.weights")
def exit_weights_fall_with_depth(original):
    """The first exit has the largest weight."""
    return lambda self, num_layers: original(self, num_layers)[::-1]


# Classifiers.


@fault("miniformer.model.exit_policy:_Batch.run_layer")
def padding_returns_after_an_exit(original):
    """Later layers attend to padding."""

    def run_layer(self):
        mask, self.mask = self.mask, None
        original(self)
        self.mask = mask

    return run_layer


@fault("miniformer.model.exit_policy:_Batch.outputs")
def exit_pools_without_the_norm(original):
    """The head of an exit reads the output of a layer without the final norm."""

    def outputs(self):
        import types

        model = self.model
        names = ("logits", "config", "add_wide_head", "layers")
        self.model = types.SimpleNamespace(
            final_norm=lambda x: x, **{name: getattr(model, name) for name in names}
        )
        try:
            return original(self)
        finally:
            self.model = model

    return outputs


@fault("miniformer.model.exit_policy:ExitPolicy.__init__")
def unsure_records_leave(original):
    """Records leave early with the complement of the threshold."""
    return lambda self, threshold: original(self, 1 - threshold)


@fault("miniformer.model.exit_policy:_Batch.select")
def rows_that_leave_are_mixed_up(original):
    """The other rows stay in the batch, in another order."""
    return lambda self, stays: original(self, stays.flip(0))


@fault("miniformer.compression.exits.bound:choose_threshold")
def tests_go_on_after_a_failure(original):
    """The loosest threshold that would be accepted alone is chosen."""

    def choose_threshold(losses, num_records, limit, confidence):
        accepted = [
            index
            for index, count in enumerate(losses)
            if original([count], num_records, limit, confidence) == 0
        ]
        return max(accepted, default=-1)

    return choose_threshold


@fault("miniformer.compression.exits.bound:binomial_p_value")
def threshold_ignores_chance(original):
    """A threshold is accepted if the share of losses is at most the limit."""
    return lambda num_losses, num_records, limit: float(num_losses > limit * num_records)


@fault("miniformer.compression.exits.bound:exit_layers")
def right_exits_count_as_losses(original):
    """Records leave at the last confident exit."""

    def exit_layers(confidences, threshold):
        return len(confidences) + 1 - original(confidences[::-1].copy(), threshold)

    return exit_layers


@fault("miniformer.checkpoint.early_exit:read_exit_policy")
def stored_threshold_is_not_used(original):
    """Loading a directory ignores its threshold."""
    return lambda directory, model, task: None


@fault("miniformer.checkpoint.early_exit:has_exits")
def exits_are_of_all_tasks_with_classes(original):
    """A task with classes in an order has exits."""
    return lambda task: hasattr(task, "classes")


@fault("miniformer.compression.exits.command:parse_share")
def percent_is_a_share(original):
    """1% is read as 1."""
    return lambda name, text: original(name, text.removesuffix("%"))


@fault("miniformer.compression.exits.calibrate:_all_exits")
def exits_are_calibrated_backwards(original):
    """The last exit is taken for the first one."""
    return lambda pipeline, data: tuple(x[::-1].copy() for x in original(pipeline, data))


@fault("miniformer.exporters.api:_note")
def export_drops_exits_silently(original):
    """An export does not say that all layers are computed."""
    return lambda has_exits: ""
