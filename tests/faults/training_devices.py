"""Faults in `miniformer.training` that need several processes."""

from tests.faults import fault


@fault("miniformer.training.distributed.strategies:all_reduce_step_stats")
def loss_is_divided_on_each_rank(original):
    """Each rank divides by its own count, and the quotients are averaged."""

    def all_reduce_step_stats(module, sums, token_counts, budget, should_stop):
        _, token_counts, should_stop = original(
            module, sums.clone(), token_counts, budget, should_stop
        )
        return sums * module.trainer.world_size, token_counts, should_stop

    return all_reduce_step_stats


@fault("miniformer.training.distributed.strategies:unsharded_params")
def ranks_measure_with_sharded_weights(original):
    """Forward passes stay collective while ranks generate texts of different lengths."""
    import contextlib

    return lambda loss_module: contextlib.nullcontext()


# Callback states and restarts.


@fault("miniformer.training.resume.callback_states:UserCallbackStates.restore")
def callback_states_are_not_restored(original):
    """User callbacks start without a state in a resumed run."""
    return lambda self, trainer, saved, checkpoint_dir: None


@fault("miniformer.training.resume.callback_states:UserCallbackStates._callbacks_by_key")
def second_callback_has_the_first_state(original):
    """The state of the second of two callbacks with one key is lost."""

    def _callbacks_by_key(self, trainer):
        return {
            key: callback for key, callback in original(self, trainer).items() if "#" not in key
        }

    return _callbacks_by_key


@fault("miniformer.training.resume.callback:ResumeCheckpoint.save")
def callback_state_is_taken_in_the_middle_of_a_step(original):
    """Callback states are collected at saving, not after the last step."""

    def save(self, trainer, module):
        if self._snapshot:
            self._snapshot["callback_states"] = self.callback_states.collect(trainer)
        original(self, trainer, module)

    return save


@fault("miniformer.training.callbacks.early_stopping:EarlyStopping.on_train_start")
def early_stopped_run_learns_on(original):
    """A resumed run trains on to the next validation after early stopping."""
    return lambda self, trainer, module: None


@fault("miniformer.training.distributed.restarts:rendezvous")
def attempts_share_a_store(original):
    """A restarted process may read keys of a dead one."""
    return lambda store, rank, world_size, poll_seconds=1.0: store


@fault("miniformer.training.resume.restart_folder:RunFolder.find_existing")
def restart_begins_a_new_folder(original):
    """A restarted group does not find its run folder."""
    return lambda self: None


@fault("miniformer.training.setup.builders:build_callbacks")
def what_is_no_callback_is_left_out(original):
    """Objects that are not callbacks are ignored without an error."""

    def build_callbacks(callbacks, settings=None):
        import lightning

        known = [callback for callback in callbacks if isinstance(callback, lightning.Callback)]
        return original(known, settings)

    return build_callbacks
