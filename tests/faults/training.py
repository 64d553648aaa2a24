"""Faults in `miniformer.training`."""

from tests.faults import fault


@fault("miniformer.training.progress:ProgressCallback._speed_since")
def mfu_is_three_times_too_large(original):
    """The backward pass is counted twice over."""

    def speed_since(self, before, now):
        speed = original(self, before, now)
        return {**speed, "mfu": 3 * speed["mfu"]} if "mfu" in speed else speed

    return speed_since


@fault("miniformer.training.progress:ProgressCallback._now")
def waiting_for_data_is_not_counted(original):
    """The time spent waiting for data is always 0."""

    def now(self, trainer, module):
        return original(self, trainer, module)._replace(waited=0.0)

    return now


@fault("miniformer.training.progress:_padding_share")
def padding_is_a_share_of_tokens(original):
    """Padding is divided by the tokens, not by all positions."""

    def padding_share(module):
        return module.padding / max(1, module.tokens)

    return padding_share


@fault("miniformer.training.budget:Budget.validation_begins")
def validation_counts_as_training(original):
    """Tokens/s go down with each validation."""
    return lambda self: None


@fault("miniformer.training.progress:ProgressCallback.summary")
def the_summary_counts_validation(original):
    """The closing line has the time of the whole run, validations included."""

    def summary(self, trainer, module):
        self._ended = self._ended._replace(seconds=self.budget.own_seconds)
        return original(self, trainer, module)

    return summary


@fault("miniformer.training.watching:Watch.figures")
def memory_is_in_mebibytes(original):
    """Memory is divided by 2**20 and called MB."""

    def figures(self):
        return {name: value / 1.048576 for name, value in original(self).items()}

    return figures


@fault("miniformer.training.watching:row_lengths")
def target_flops_are_those_of_sources(original):
    """The rows of targets are as long as those of sources."""
    return lambda batch: original(batch)[:1]


@fault("miniformer.training.watching:Watch.flops")
def training_is_a_forward_pass(original):
    """The backward pass is left out of the FLOPs."""
    return lambda self, batch: original(self, batch) / 3


@fault("miniformer.training.watching:Watch.on_before_optimizer_step")
def layer_norms_are_those_after_clipping(original):
    """The gradients of layers are measured as they are after they were clipped."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        limit, module.gradient_clip_val = module.gradient_clip_val, 0.0
        original(self, trainer, module, optimizer)
        module.gradient_clip_val = limit

    return on_before_optimizer_step


@fault("miniformer.training.engines:divide_and_clip")
def short_gradients_are_lengthened(original):
    """Each gradient is made as long as the limit, short ones too."""

    def divide_and_clip(module, count, limit):
        norm = original(module, count, 0.0)
        if limit and norm is not None:
            for parameter in module.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(limit / norm)
        return norm

    return divide_and_clip


@fault("miniformer.training.engines:divide_and_clip")
def gradients_are_clipped_to_twice_the_limit(original):
    """The limit holds for the gradient of half the loss."""
    return lambda module, count, limit: original(module, count, 2 * limit)


@fault("miniformer.training.engines:agree")
def metrics_forget_accumulated_batches(original):
    """The loss of a step is divided by one label too many."""

    def agree(module, sums, told, budget, stop):
        sums, told, stop = original(module, sums, told, budget, stop)
        return sums + sums.new_tensor([0.0, 1.0]), told, stop

    return agree


@fault("miniformer.training.lit_module:MiniFormerLitModule._factor")
def the_learning_rate_is_that_of_the_next_step(original):
    """The schedule is one step ahead."""
    return lambda self, step, epochs=0.0: original(self, step + 1, epochs)


@fault("miniformer.training.lit_module:MiniFormerLitModule._log_to_loggers")
def loggers_count_batches(original):
    """Loggers get the number of batches as the step."""

    def log_to_loggers(self, figures):
        step = self.trainer.global_step * self.accumulate_grad_batches
        for logger in self.loggers:
            logger.log_metrics(figures, step=step)

    return log_to_loggers


@fault("miniformer.training.budget:Budget.seconds_left")
def time_left_is_time_gone(original):
    """The progress line shows the time that the run has taken."""
    return lambda self, progress: self.seconds * progress


@fault("miniformer.training.progress:ProgressCallback._show")
def the_progress_line_has_the_mean_of_the_run(original):
    """Tokens/s are those since the run began, not since the line before."""

    def show(self, trainer, module, progress):
        self._speed = self._speed_since(self._began, self._now(trainer, module))
        original(self, trainer, module, progress)

    return show


@fault("miniformer.training.card:_round")
def the_card_rounds_to_three_digits(original):
    """Figures of the card have three digits."""
    return lambda value: f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


@fault("miniformer.training.report.page:_duration")
def hours_are_minutes(original):
    """Durations are those of the seconds divided by 60 twice."""
    return lambda seconds: original(seconds / 60)


@fault("miniformer.training.report.curves:points_of")
def the_report_has_the_last_speed(original):
    """The report is about the last row of each number."""
    return lambda rows, key: original(rows, key)[-1:]


@fault("miniformer.training.budget:Budget.state")
def a_resumed_clock_forgets_validations(original):
    """A resumed run counts the validations before as training."""
    return lambda self: {**original(self), "validation_seconds": 0.0}


@fault("miniformer.training.run_state:KeepState._restore")
def a_resumed_run_counts_tokens_anew(original):
    """A resumed run begins with no tokens."""

    def restore(self, trainer, module, folder):
        original(self, trainer, module, folder)
        module.tokens = module.padding = 0

    return restore


@fault("miniformer.training.machine:_seconds")
def a_product_is_half_the_operations(original):
    """A product is timed as one that is half as long."""
    return lambda a, b: original(a, b) / 2


@fault("miniformer.training.callbacks:Averaging.on_train_start")
def the_moving_average_begins_after_a_step(original):
    """The first weights of a run are left out of the average."""
    return lambda self, trainer, module: None


@fault("miniformer.training.callbacks:Averaging.on_train_batch_end")
def the_moving_average_is_of_batches(original):
    """The average is updated after each batch, not after each optimizer step."""

    def on_train_batch_end(self, trainer, *args):
        self._step = -1
        original(self, trainer, *args)

    return on_train_batch_end


@fault("miniformer.training.callbacks:Averaging.on_validation_start")
def validation_has_the_plain_weights(original):
    """Validations, and so the best model, have the weights of the last step."""
    return lambda self, trainer, module: None


@fault("miniformer.training.averaging:Ema.swapped")
def training_goes_on_with_the_averages(original):
    """The model keeps the averages after a validation."""
    import contextlib

    @contextlib.contextmanager
    def swapped(self):
        self._swap()
        yield

    return swapped


@fault("miniformer.training.run:_averaged_weights")
def last_has_the_plain_weights(original):
    """The averages are given back before they are saved."""
    return lambda module, run, parts: dict(run.model.state_dict())


@fault("miniformer.training.averaging:LastWeights.mean")
def the_mean_leaves_out_the_last_validation(original):
    """The mean is that of one validation fewer."""

    def mean(self):
        kept, self._kept = self._kept, self._kept[:-1]
        try:
            return original(self)
        finally:
            self._kept = kept

    return mean


@fault("miniformer.training.lit_module:MiniFormerLitModule.train_mode")
def schedule_free_validates_the_weights_in_training(original):
    """The optimizer is never told to hold its averages."""
    return lambda self, training: original(self, True)
