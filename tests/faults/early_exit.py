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
