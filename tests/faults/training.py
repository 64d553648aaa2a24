"""Faults in `miniformer.training`."""

import dataclasses
import types

from tests.faults import fault


@fault("miniformer.training.callbacks.progress:ProgressCallback._throughput_since")
def mfu_is_three_times_too_large(original):
    """The backward pass is counted twice."""

    def _throughput_since(self, previous, current):
        throughput = original(self, previous, current)
        return {**throughput, "mfu": 3 * throughput["mfu"]} if "mfu" in throughput else throughput

    return _throughput_since


@fault("miniformer.training.callbacks.progress:ProgressCallback._snapshot")
def waiting_for_data_is_not_counted(original):
    """The time spent waiting for data is always 0."""

    def _snapshot(self, trainer, module):
        return original(self, trainer, module)._replace(data_wait_seconds=0.0)

    return _snapshot


@fault("miniformer.training.callbacks.progress:_padding_fraction")
def padding_is_a_share_of_tokens(original):
    """Padding is divided by the tokens, not by all positions."""

    def _padding_fraction(module):
        return module.padding / max(1, module.tokens)

    return _padding_fraction


@fault("miniformer.training.callbacks.budget:Budget.start_validation")
def validation_counts_as_training(original):
    """Validation time lowers tokens/s."""
    return lambda self: None


@fault("miniformer.training.callbacks.progress:ProgressCallback.summary")
def the_summary_counts_validation(original):
    """The summary has the total time, including validation."""

    def summary(self, trainer, module):
        self._final = self._final._replace(seconds=self.budget.local_seconds)
        return original(self, trainer, module)

    return summary


@fault("miniformer.training.callbacks.monitor:RunMonitor.metrics")
def memory_is_in_mebibytes(original):
    """Memory is divided by 2**20 and called MB."""

    def metrics(self):
        return {name: value / 1.048576 for name, value in original(self).items()}

    return metrics


@fault("miniformer.training.callbacks.monitor:find_token_tensors")
def target_flops_are_those_of_sources(original):
    """Target rows have the length of source rows."""
    return lambda batch, declared=None: dict(list(original(batch, declared).items())[:1])


@fault("miniformer.training.callbacks.monitor:RunMonitor.train_flops")
def training_is_a_forward_pass(original):
    """The FLOPs omit the backward pass."""
    return lambda self, batch: original(self, batch) / 3


@fault("miniformer.training.callbacks.monitor:RunMonitor.on_before_optimizer_step")
def layer_norms_are_those_after_clipping(original):
    """Gradient norms of layers are those after gradient clipping."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        limit, module.gradient_clip_val = module.gradient_clip_val, 0.0
        original(self, trainer, module, optimizer)
        module.gradient_clip_val = limit

    return on_before_optimizer_step


@fault("miniformer.training.distributed.strategies:normalize_and_clip_grads")
def short_gradients_are_lengthened(original):
    """Gradients below the limit are scaled up to it."""

    def normalize_and_clip_grads(module, count, max_norm):
        norm = original(module, count, 0.0)
        if max_norm and norm is not None:
            for parameter in module.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(max_norm / norm)
        return norm

    return normalize_and_clip_grads


@fault("miniformer.training.distributed.strategies:normalize_and_clip_grads")
def gradients_are_clipped_to_twice_the_limit(original):
    """Gradient clipping uses twice the limit."""
    return lambda module, count, max_norm: original(module, count, 2 * max_norm)


@fault("miniformer.training.distributed.strategies:all_reduce_step_stats")
def metrics_forget_accumulated_batches(original):
    """The loss of a step is divided by one too many labels."""

    def all_reduce_step_stats(module, sums, token_counts, budget, should_stop):
        sums, token_counts, should_stop = original(module, sums, token_counts, budget, should_stop)
        return sums + sums.new_tensor([0.0, 1.0]), token_counts, should_stop

    return all_reduce_step_stats


@fault("miniformer.training.lit_module:MiniFormerLitModule._lr_factor")
def the_learning_rate_is_that_of_the_next_step(original):
    """The schedule is one step ahead."""
    return lambda self, step, epochs=0.0: original(self, step + 1, epochs)


@fault("miniformer.training.lit_module:MiniFormerLitModule._log_to_loggers")
def loggers_count_batches(original):
    """Loggers get the number of batches as the step."""

    def _log_to_loggers(self, metrics):
        step = self.trainer.global_step * self.accumulate_grad_batches
        for logger in self.loggers:
            logger.log_metrics(metrics, step=step)

    return _log_to_loggers


@fault("miniformer.training.callbacks.budget:Budget.remaining_seconds")
def time_left_is_time_gone(original):
    """The progress line shows the elapsed time."""
    return lambda self, progress: self.seconds * progress


@fault("miniformer.training.callbacks.progress:ProgressCallback._render")
def the_progress_line_has_the_mean_of_the_run(original):
    """Tokens/s are those since the start, not since the previous line."""

    def _render(self, trainer, module, progress):
        self._throughput = self._throughput_since(self._first, self._snapshot(trainer, module))
        original(self, trainer, module, progress)

    return _render


@fault("miniformer.training.report.model_card:format_number")
def the_card_rounds_to_three_digits(original):
    """Metrics of the model card have three digits."""
    return lambda value: original(value) if value >= 1000 else original(float(f"{value:.3g}"))


@fault("miniformer.utils.formats:format_duration")
def hours_are_minutes(original):
    """Durations are divided by 60 once too often."""
    return lambda seconds: original(seconds / 60)


@fault("miniformer.training.report.curves:metric_points")
def the_report_has_the_last_speed(original):
    """The report has the last row of each metric only."""
    return lambda rows, key: original(rows, key)[-1:]


@fault("miniformer.training.callbacks.budget:Budget.state_dict")
def a_resumed_clock_forgets_validations(original):
    """A resumed run counts earlier validations as training."""
    return lambda self: {**original(self), "validation_seconds": 0.0}


@fault("miniformer.training.resume.callback:ResumeCheckpoint._restore")
def a_resumed_run_counts_tokens_anew(original):
    """A resumed run counts tokens from 0."""

    def _restore(self, trainer, module, folder):
        original(self, trainer, module, folder)
        module.tokens = module.padding = 0

    return _restore


@fault("miniformer.training.tuning.hardware:_time_matmul")
def a_product_is_half_the_operations(original):
    """A product is timed as one that is half as long."""
    return lambda a, b: original(a, b) / 2


@fault("miniformer.training.callbacks.validation:WeightAveraging.on_train_start")
def the_moving_average_begins_after_a_step(original):
    """The average omits the initial weights."""
    return lambda self, trainer, module: None


@fault("miniformer.training.callbacks.validation:WeightAveraging.on_train_batch_end")
def the_moving_average_is_of_batches(original):
    """The average is updated after each batch, not after each optimizer step."""
    import types

    return lambda self, trainer, module, *args: original(
        self, trainer, types.SimpleNamespace(between_steps=True)
    )


@fault("miniformer.training.callbacks.validation:WeightAveraging.on_validation_start")
def validation_has_the_plain_weights(original):
    """Validation and the best model use the weights of the last step."""
    return lambda self, trainer, module: None


@fault("miniformer.training.evaluate:validate_last_step")
def the_closing_validation_has_the_plain_weights(original):
    """Averages are left out of the validation behind the last step."""
    import contextlib

    def validate_last_step(trainer, module, run, callbacks):
        averaging = callbacks.weight_averaging
        averaging.use_averaged_weights = lambda module: contextlib.nullcontext()
        try:
            return original(trainer, module, run, callbacks)
        finally:
            del averaging.use_averaged_weights

    return validate_last_step


@fault("miniformer.training.callbacks.validation:WeightAveraging._swap")
def training_goes_on_with_the_averages(original):
    """The model keeps the averages after a validation."""

    def _swap(self, module, *, averages):
        if averages:
            self._in_use = False
            original(self, module, averages=True)

    return _swap


@fault("miniformer.training.evaluate:averaged_weights")
def last_has_the_plain_weights(original):
    """The averages are swapped out before they are saved."""
    return lambda module, run, callbacks: dict(run.model.state_dict())


@fault("miniformer.training.optim.weight_averaging:CheckpointAverage.mean")
def the_mean_leaves_out_the_last_validation(original):
    """The mean omits the last validation."""

    def mean(self):
        snapshots, self._snapshots = self._snapshots, self._snapshots[:-1]
        try:
            return original(self)
        finally:
            self._snapshots = snapshots

    return mean


@fault("miniformer.training.lit_module:MiniFormerLitModule.test_step")
def precision_of_the_test_is_that_of_training(original):
    """The test computes in bfloat16 if training does."""
    return lambda self, batch, batch_idx: self._eval_step(batch, test=True)


@fault("miniformer.training.lit_module:MiniFormerLitModule.set_optimizer_mode")
def schedule_free_validates_the_weights_in_training(original):
    """The optimizer never switches to its averages."""
    return lambda self, training: original(self, True)


# Before a run.


@fault("miniformer.train_config:TrainConfig.cross_check")
def problems_between_settings_pass(original):
    """Fields are checked one by one, not against each other."""
    return lambda self: []


@fault("miniformer.train_config:TrainConfig._conflicts_between_parts")
def settings_without_effect_pass(original):
    """Conflicts between the parts of a config are accepted without an error."""
    return lambda self: []


@fault("miniformer.training.tuning.validation_defaults:resolve_checkpoint_metric")
def best_model_is_that_of_the_loss(original):
    """The loss selects the best model of any task."""

    def resolve_checkpoint_metric(task, records):
        import dataclasses

        return dataclasses.replace(original(task, records), value="loss")

    return resolve_checkpoint_metric


@fault("miniformer.training.setup.run_folder:create_run_folder")
def run_overwrites_the_one_before(original):
    """A second run of a name uses the folder of the first."""

    def create_run_folder(work_dir, name, created=None):
        folder = work_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return create_run_folder


@fault("miniformer.training.setup.init_from:load_pretrained_weights")
def run_begins_with_random_weights(original):
    """The weights of `init_from` are read and not loaded."""

    def load_pretrained_weights(model, directory, model_kind):
        weights = {name: weight.clone() for name, weight in model.state_dict().items()}
        new = original(model, directory, model_kind)
        model.load_state_dict(weights)
        return new

    return load_pretrained_weights


@fault("miniformer.training.setup.pretraining:_check_overrides")
def warm_start_may_have_another_shape(original):
    """A warm start takes any setting of its model."""

    def _check_overrides(pretrain):
        model = pretrain.get("model_config", {})
        overrides = original({**pretrain, "model_config": {}} if isinstance(model, dict) else
                         pretrain)  # fmt: skip
        return {**overrides, "model_config": model}

    return _check_overrides


@fault("miniformer.training.tuning.data_defaults:default_batch_size")
def each_device_takes_the_whole_batch(original):
    """The batch is not divided by the number of devices."""
    return lambda total_tokens, row_tokens, num_devices=1: original(total_tokens, row_tokens)


@fault("miniformer.training.tuning.data_defaults:resolve_model_size")
def given_width_is_overwritten(original):
    """The model size follows from the data despite a given width."""

    def resolve_model_size(config, data):
        import dataclasses

        return original(dataclasses.replace(config, model_config={}), data)

    return resolve_model_size


@fault("miniformer.training.tuning.data_defaults:resolve_lr")
def pretrained_weights_learn_as_fast_as_random_ones(original):
    """The learning rate is the optimizer's default for any initial weights."""
    return lambda optimizer, *, from_scratch: original(optimizer, from_scratch=True)


@fault("miniformer.training.tuning.data_defaults:resolve_task_options")
def pairs_are_marked_only_where_it_is_said(original):
    """Automatic options of the task keep their fixed defaults."""
    return lambda task, task_config, records: (task, [])


@fault("miniformer.training.tuning.data_defaults:resolve_task_options")
def data_overrides_given_task_options(original):
    """Options of the task follow from the data even if the user gives them."""
    return lambda task, task_config, records: original(task, {}, records)


@fault("miniformer.tasks.common.sequence_input:InputTask.fit")
def fit_marks_pairs_unasked(original):
    """`fit` decides from the data that tokens of pairs are marked."""

    def fit(self, records):
        import dataclasses

        fitted = original(self, records)
        return dataclasses.replace(fitted, shared_token_types=fitted.input_kind == "pair")

    return fit


@fault("miniformer.training.tuning.tokenizer_defaults:mostly_single_words")
def few_phrases_make_words_of_none(original):
    """Texts are single words only where all of them are."""

    def mostly_single_words(texts):
        texts = [text for text in texts if text.strip()]
        return original(texts) and all(len(text.split()) == 1 for text in texts)

    return mostly_single_words


@fault("miniformer.training.tuning.tokenizer_defaults:resolve_source_tokenizer")
def named_tokenizer_is_not_heard(original):
    """Words are read letter by letter, even with a given tokenizer."""

    def resolve_source_tokenizer(config, model, task, records):
        import dataclasses

        return original(dataclasses.replace(config, tokenizer=None), model, task, records)

    return resolve_source_tokenizer


@fault("miniformer.training.setup.tokenizers:make_tokenizer")
def sources_share_the_tokenizer_of_targets(original):
    """The tokenizer of the sources is trained and not used."""

    def make_tokenizer(config, task, records):
        tokenizer, *others = original(config, task, records)
        tokenizer.separate_source_tokenizer = None
        return tokenizer, *others

    return make_tokenizer


@fault("miniformer.training.tuning.hardware:has_fast_bf16")
def bfloat16_is_taken_wherever_it_exists(original):
    """bfloat16 is chosen for CPUs on which it is slower."""

    def has_fast_bf16(device_type):
        from miniformer.training.tuning.hardware import _cpu_has_bf16

        return _cpu_has_bf16() if device_type == "cpu" else original(device_type)

    return has_fast_bf16


# Trials.


@fault("miniformer.training.tuning.dry_run:restore_model_state")
def trial_moves_the_random_state(original):
    """Trying a model out draws from the run's random numbers."""
    import contextlib

    @contextlib.contextmanager
    def restore_model_state(model):
        import torch

        with original(model):
            yield
        torch.rand(1)

    return restore_model_state


@fault("miniformer.training.tuning.lr_finder:_suggest_lr")
def rate_of_the_lowest_loss_is_suggested(original):
    """The learning rate of the lowest loss is suggested, where training is about to diverge."""
    return lambda lrs, losses: lrs[losses.index(min(losses))]


@fault("miniformer.training.tuning.lr_finder:_predict_next_memory")
def next_batch_is_expected_to_take_no_more(original):
    """The memory of the next batch size is taken for that of the last."""
    return lambda memory: memory[-1] if memory else 0


@fault("miniformer.training.setup.auto_tune:_scaled_batch_tokens")
def limit_of_tokens_stays_for_other_batches(original):
    """A micro-batch may have as many tokens as the complete batch."""
    return lambda run, batch_size: run.config.batch_tokens


@fault("miniformer.training.tuning.compile:format_compile_summary")
def compilation_pays_back_in_batches(original):
    """The time that compilation saves is counted by batch and printed by step."""

    def format_compile_summary(
        compile_seconds, eager_seconds, compiled_seconds, accumulate_grad_batches, max_steps
    ):
        return original(compile_seconds, eager_seconds, compiled_seconds, 1, max_steps)

    return format_compile_summary


@fault("miniformer.training.tuning.memory_planner:plan_memory")
def state_of_the_optimizer_takes_no_memory(original):
    """A plan of memory leaves out the optimizer's state."""

    def plan_memory(model, task, make_batches, *, optimizer_bytes_per_param, **options):
        return original(model, task, make_batches, optimizer_bytes_per_param=0.0, **options)

    return plan_memory


@fault("miniformer.training.tuning.memory_planner:_micro_batch_size")
def micro_batches_make_up_less_than_the_batch(original):
    """Micro-batches are as large as fits, for any batch."""
    return lambda max_size, batch_size: max_size


@fault("miniformer.training.tuning.memory_tracker:peak_tensor_bytes")
def peak_is_what_is_left_at_the_end(original):
    """Peak memory of a step is the memory at its end."""

    def peak_tensor_bytes(step):
        from miniformer.model.ops.allocation_tracker import AllocationTracker

        with AllocationTracker() as births:
            result = step()  # noqa: F841 (lives until the end)
        return births.live_bytes()

    return peak_tensor_bytes


# Steps.


@fault("miniformer.training.lit_module:MiniFormerLitModule.training_step")
def loss_is_averaged_over_each_batch(original):
    """Accumulated batches weigh the same, however many tokens they have."""

    def training_step(self, batch, batch_idx):
        forward = self.loss_module.forward

        def mean(batch):
            loss, count = forward(batch)
            return loss / count, count / count

        self.loss_module.forward = mean
        try:
            original(self, batch, batch_idx)
        finally:
            del self.loss_module.forward

    return training_step


@fault("miniformer.training.lit_module:is_duplicate_batch")
def batch_of_another_rank_counts_again(original):
    """A batch that only keeps ranks in step is learned from."""
    return lambda batch: False


@fault("miniformer.training.optim.param_groups:build_param_groups")
def norms_and_embeddings_decay(original):
    """All weights decay."""

    def build_param_groups(model, *, weight_decay, layer_lr_decay=1.0):
        groups = original(model, weight_decay=weight_decay, layer_lr_decay=layer_lr_decay)
        return [{**group, "weight_decay": weight_decay} for group in groups]

    return build_param_groups


@fault("miniformer.training.optim.param_groups:_distance_from_head")
def all_layers_learn_at_one_rate(original):
    """layer_lr_decay does nothing."""
    return lambda name, depths: 0


@fault("miniformer.training.optim.param_groups:_distance_from_head")
def seq2seq_embeddings_learn_like_the_head(original):
    """Embeddings that belong to no stack by their name have the rate of the head."""

    def distance_from_head(name, depths):
        in_a_stack = any(name.startswith(stack) for stack in depths)
        return original(name, depths) if in_a_stack else 0

    return distance_from_head


@fault("miniformer.training.optim.optimizers:schedulefree")
def schedulefree_ignores_layer_lr_decay(original):
    """layer_lr_decay does nothing with optimizer=schedulefree."""

    def schedulefree(model, *, lr=2e-3, weight_decay, layer_lr_decay=1.0, **options):
        return original(model, lr=lr, weight_decay=weight_decay, **options)

    return schedulefree


@fault("miniformer.training.optim.optimizers:muon")
def muon_ignores_betas(original):
    """The AdamW part has the default betas instead of given ones."""

    def muon(model, *, lr=5e-3, weight_decay, betas=(0.9, 0.95), **options):
        return original(model, lr=lr, weight_decay=weight_decay, **options)

    return muon


@fault("miniformer.training.optim.optimizers:muon")
def muon_takes_embeddings(original):
    """Every matrix is trained by Muon, embeddings too."""

    def muon(model, *, lr=5e-3, weight_decay, **options):
        optimizer = original(model, lr=lr, weight_decay=weight_decay, **options)
        for group in optimizer.param_groups:
            if all(parameter.dim() == 2 for parameter in group["params"]):
                group["kind"] = "muon"
        return optimizer

    return muon


@fault("miniformer.training.optim.muon:orthogonalize")
def muon_only_scales(original):
    """Updates are scaled to length 1 and not made orthogonal."""

    def orthogonalize(matrices, steps=3):
        return matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)

    return orthogonalize


@fault("miniformer.training.optim.schedules:wsd")
def options_of_a_schedule_have_no_effect(original):
    """The decay of wsd takes the last fifth of any run."""
    return lambda progress, decay_ratio=0.2: original(progress)


@fault("miniformer.training.optim.schedules:check_schedule_options")
def options_of_a_schedule_are_not_checked(original):
    """Unknown options of a schedule are found when its first step is taken."""
    return lambda name, options: None


@fault("miniformer.training.optim.schedules:cosine")
def cosine_ends_at_a_half(original):
    """The cosine schedule falls to half of the rate."""
    return lambda progress: (1 + original(progress)) / 2


@fault("miniformer.training.callbacks.nan_check:NaNCheck.check")
def infinite_loss_is_learned(original):
    """A NaN or infinite loss does not end the run."""
    return lambda self, step, *, now=False: None


@fault("miniformer.training.callbacks.nan_check:nan_error_message")
def records_of_an_infinite_loss_are_not_named(original):
    """The message about an infinite loss does not name the records."""
    return lambda error, data, checkpoint: str(error)


@fault("miniformer.training.callbacks.grad_norms:_group_name")
def layers_1_and_11_are_one(original):
    """Gradient norms are grouped by the first digit of a layer."""

    def _group_name(parameter_name, stacks):
        import re

        return re.sub(r"(?<=\.\d)\d+$", "", original(parameter_name, stacks))

    return _group_name


# Validations, and the best model.


@fault("miniformer.training.callbacks.validation:BestModelCheckpoint._sort_key")
def best_model_has_the_smallest_accuracy(original):
    """A metric to maximize is minimized."""
    return lambda self, metrics: (metrics[self.monitor], metrics["val_loss"])


@fault("miniformer.training.callbacks.early_stopping:EarlyStopping.load_state_dict")
def resumed_run_forgets_its_patience(original):
    """A resumed run resets the patience of early stopping."""

    def load_state_dict(self, state):
        original(self, {**state, "validations": [state["validations"][0], 0]})

    return load_state_dict


@fault("miniformer.training.callbacks.early_stopping:EarlyStopping._update")
def early_stopping_ignores_the_loss(original):
    """A lower loss is no improvement while the metric stays the same or gets worse."""

    def _update(self, metrics, step):
        original(self, {**metrics, "val_loss": 0.0}, step)

    return _update


@fault("miniformer.training.callbacks.budget:Cooldown.lr_factor")
def stopped_run_stays_at_its_learning_rate(original):
    """The phase after early stopping does not anneal the learning rate."""
    return lambda self, steps: self.start_lr_factor


@fault("miniformer.training.setup.builders:load_best_weights")
def stopped_run_anneals_its_last_weights(original):
    """The phase after early stopping begins at the last weights, not the best ones."""
    return lambda run, folder, averaging: None


@fault("miniformer.training.optim.weight_averaging:Ema.reset")
def averages_keep_the_weights_after_the_best(original):
    """The EMA still holds the overfitted weights when the best ones are annealed."""
    return lambda self: None


@fault("miniformer.training.callbacks.validation:ValidationSchedule._is_affordable")
def validation_may_take_all_the_time(original):
    """Validations of a run with a limit of time have no limit of their own."""
    return lambda self: True


@fault("miniformer.training.tuning.validation_defaults:default_num_validations")
def reason_of_validations_is_always_that_of_epochs(original):
    """Any number of validations has the reason of one an epoch."""
    return lambda epochs, relative_cost: (original(epochs, relative_cost)[0], "one an epoch")


@fault("miniformer.training.tuning.validation_defaults:relative_validation_cost")
def validation_costs_nothing(original):
    """The number of validations does not depend on the size of the validation data."""
    return lambda data: 0.0


@fault("miniformer.training.callbacks.validation:ValidationSchedule.on_train_batch_end")
def validation_comes_within_a_step(original):
    """A validation may come between the batches of a step."""
    import types

    return lambda self, trainer, module, *args: original(
        self, trainer, types.SimpleNamespace(between_steps=True)
    )


@fault("miniformer.training.setup.builders:RunCallbacks.around")
def interruption_comes_before_the_state(original):
    """Ctrl-C ends a run before the snapshot of its last step."""

    def around(self, callbacks):
        *more, states, interrupt = original(self, callbacks)
        return [*more, interrupt, states]

    return around


@fault("miniformer.training.callbacks.generation_samples:SampleGeneration._generation_config")
def samples_have_no_seed(original):
    """Samples differ for the same weights."""

    def _generation_config(self):
        import dataclasses

        return dataclasses.replace(original(self), seed=None)

    return _generation_config


@fault("miniformer.training.callbacks.interrupt:InterruptCallback._restore_handlers")
def signal_handlers_stay(original):
    """Signal handlers stay after training."""
    return lambda self: None


# Files of a run.


@fault("miniformer.training.resume.storage:write_checkpoint")
def older_state_goes_before_the_new_one_is_whole(original):
    """The last checkpoint is removed before the next one is written."""

    def write_checkpoint(run_dir, step, tensors, metadata):
        import shutil

        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        return original(run_dir, step, tensors, metadata)

    return write_checkpoint


@fault("miniformer.training.resume.rng_state:set_rng_state")
def resumed_run_has_other_numpy_numbers(original):
    """A resumed run does not restore NumPy's random state."""

    def set_rng_state(state):
        import numpy as np

        numpy_state = np.random.get_state()
        original(state)
        np.random.set_state(numpy_state)

    return set_rng_state


@fault("miniformer.training.lightning_internals:set_global_step")
def an_internal_of_lightning_is_gone(original):
    """Lightning's counter of steps has another name."""

    def set_global_step(trainer, step):
        trainer.fit_loop.epoch_loop.manual_optimization.steps.total = step

    return set_global_step


@fault("miniformer.training.lightning_internals:set_global_step")
def a_resumed_trainer_counts_from_0(original):
    """The step of a checkpoint does not reach the Trainer."""
    return lambda trainer, step: None


@fault("miniformer.training.resume.optimizer_state:allocate_optimizer_state")
def a_resumed_optimizer_has_the_values_of_its_start(original):
    """The numbers in the groups of an optimizer are not restored."""
    return lambda model, optimizer, metadata: original(
        model, optimizer, {**metadata, "groups": [{} for _ in metadata["groups"]]}
    )


@fault("miniformer.training.resume.config:resume_config")
def settings_of_a_resumed_run_may_change(original):
    """Overrides of fixed fields are ignored without an error."""

    def resume_config(run_dir, overrides):
        from miniformer.training.resume.config import CHANGEABLE_FIELDS

        return original(run_dir, {k: v for k, v in overrides.items() if k in CHANGEABLE_FIELDS})

    return resume_config


@fault("miniformer.training.resume.config:saved_config")
def earlier_runs_get_later_defaults(original):
    """A run of an earlier version is resumed with the defaults of this version."""

    def saved_config(run_dir):
        from miniformer.train_config import TrainConfig
        from miniformer.training.resume.config import CONFIG_FILE

        return TrainConfig.from_file(run_dir / CONFIG_FILE)

    return saved_config


@fault("miniformer.utils.jsonl:read_rows")
def rows_of_steps_done_again_stay(original):
    """Rows after the checkpoint stay in the file of a resumed run."""
    return lambda path, count, *, truncate: original(path, count, truncate=False)


@fault("miniformer.training.resume.verify:weights_digest")
def digest_ignores_the_weights(original):
    """Models with equal parameter names have the same hash."""
    return lambda weights: original({name: tensor * 0 for name, tensor in weights.items()})


@fault("miniformer.training.distributed.launcher:worker_context")
def mistake_of_a_worker_is_lost(original):
    """A user error in a worker does not reach the launching process."""
    import contextlib

    @contextlib.contextmanager
    def worker_context(outcome_path):
        from pathlib import Path

        try:
            with original(outcome_path) as write_outcome:
                yield write_outcome
        except SystemExit:
            Path(outcome_path).unlink(missing_ok=True)
            raise

    return worker_context


@fault("miniformer.training.report.loggers:csv")
def csv_of_a_resumed_run_overwrites_the_first(original):
    """A resumed run overwrites the CSV file of the first run."""

    def csv(folder):
        from lightning.pytorch.loggers import CSVLogger

        return CSVLogger(folder, name="", version="csv")

    return csv


@fault("miniformer.training.report.artifacts:RunArtifacts.finalize_model_card")
def card_of_the_model_stays_unfinished(original):
    """The model card of the best model has no test metrics and no loss curve."""
    return lambda self, name, metrics: None


@fault("miniformer.training.tuning.lr_finder:LRFinderResult.plot")
def range_test_is_not_drawn(original):
    """The plot of a learning-rate range test is not written."""
    return lambda self, path, *, unit="nats": None


# The report.


@fault("miniformer.utils.formats:escape_html")
def text_of_others_is_markup(original):
    """Text in the report is not escaped."""
    return lambda value: str(value).encode("utf-8", "replace").decode("utf-8")


@fault("miniformer.training.report.charts:draw_lines")
def charts_stand_on_their_heads(original):
    """Curves are drawn with small values on top."""

    def draw_lines(axes, title, series, **options):
        original(axes, title, series, **options)
        axes.invert_yaxis()

    return draw_lines


@fault("miniformer.training.report.charts:draw_lines")
def long_curve_loses_its_spikes(original):
    """Every n-th point is drawn."""

    def draw_lines(axes, title, series, **options):
        strides = [max(1, len(curve.points) // 600) for curve in series]
        series = [
            dataclasses.replace(curve, points=curve.points[::stride])
            for curve, stride in zip(series, strides, strict=True)
        ]
        original(axes, title, series, **options)

    return draw_lines


@fault("miniformer.utils.plotting:new_axes")
def plots_change_the_style(original):
    """The style of the process is that of the plots."""

    def new_axes(width, height, salt=""):
        import matplotlib

        matplotlib.rcParams["axes.grid"] = True
        return original(width, height, salt=salt)

    return new_axes


@fault("miniformer.training.report.curves:metric_points")
def curves_go_by_row(original):
    """Curves count rows instead of steps."""

    def metric_points(rows, key):
        points = original(rows, key)
        points[:, 0] = range(len(points))
        return points

    return metric_points


@fault("miniformer.training.report.page:write_report")
def report_may_load_things(original):
    """The page allows external resources."""

    def write_report(path, report):
        original(path, report)
        page = path.read_text(encoding="utf-8")
        path.write_text(page.replace("default-src 'none'; ", ""), encoding="utf-8")

    return write_report


@fault("miniformer.training.report.loggers:mlflow")
def mlflow_begins_a_new_run(original):
    """MLflow starts a new run for a resumed run."""

    def mlflow(folder):
        (folder / "mlflow_run_id").unlink(missing_ok=True)
        return original(folder)

    return mlflow


@fault("miniformer.training.resume.verify:_read_losses")
def verify_compares_no_losses(original):
    """`verify-resume` compares only the final state."""
    return lambda path: {}


@fault("miniformer.training.resume.verify:state_digests")
def verify_compares_no_states(original):
    """`verify-resume` compares only losses."""
    return lambda run_dir: {}


@fault("miniformer.training.resume.verify:_read_losses")
def verify_keeps_the_last_loss_of_a_step(original):
    """The first loss of a repeated step is not compared."""

    def _read_losses(path):
        import json

        return {step: {loss} for step, loss in map(json.loads, path.read_text().splitlines())}

    return _read_losses


@fault("miniformer.utils.jsonl:is_due")
def a_longer_run_has_no_rows_until_its_end(original):
    """An extended run has no rows before its former progress."""
    return lambda progress, last_progress, max_rows: progress - last_progress >= 1 / max_rows


@fault("miniformer.training.callbacks.progress:ProgressCallback._throughput_since")
def the_work_of_one_device_is_that_of_all(original):
    """The FLOPs of one device are divided by the peak of all devices."""

    def _throughput_since(self, previous, current):
        throughput = original(self, previous, current)
        if "mfu" in throughput:
            work = current.local_flops - previous.local_flops
            throughput["mfu"] = round(
                work / (current.seconds - previous.seconds) / self.peak_flops, 4
            )
        return throughput

    return _throughput_since


@fault("miniformer.training.setup.auto_tune:plan_memory")
def predicted_memory_leaves_out_the_optimizer(original):
    """The predicted memory omits the optimizer state."""

    def plan_memory(*args, optimizer_bytes_per_param, **options):
        return original(*args, optimizer_bytes_per_param=0.0, **options)

    return plan_memory


@fault("miniformer.training.resume.config:resolve_model")
def init_from_takes_model_directories_only(original):
    """`init_from` is the folder of a run, which has no weights."""
    return lambda directory, *, note=True: directory


@fault("miniformer.training.report.verdicts:_underfitting")
def advice_is_a_budget_that_the_run_lacks(original):
    """A run that may improve is to have more time, whatever ends it."""
    return lambda train, loss, best_step, longer: original(
        train, loss, best_step, "a longer --max_time"
    )


@fault("miniformer.training.setup.prepare:share_files")
def training_data_validates_itself(original):
    """Nothing is printed about validation data that is the training data."""
    return lambda first, second: False


@fault("miniformer.training.setup.run_folder:_no_space_message")
def a_run_that_was_not_written_is_to_be_resumed(original):
    """A full disk leads to the advice to resume, also where no run is."""
    return lambda error, is_kept: original(error, True)


@fault("miniformer.training.setup.run_folder:_check_writable")
def work_dir_is_tested_after_the_preparation(original):
    """A work_dir is tested when the folder of the run is created."""
    return lambda work_dir: None


@fault("miniformer.training.setup.run_folder:_is_used")
def failed_start_leaves_folder(original):
    """The folder of a run that fails before its first step stays."""
    return lambda folder: True


@fault("miniformer.training.callbacks.validation:BudgetStopping.on_train_epoch_start")
def resumed_run_exceeds_its_limit(original):
    """A run that is resumed at its limit takes one more step."""

    def on_train_epoch_start(self, trainer, module):
        self._empty_epochs += 1

    return on_train_epoch_start


@fault("miniformer.training.setup.limits:warn_unreached_limits")
def limits_beyond_the_end_pass_in_training(original):
    """A run does not warn of limits that it does not reach."""
    return lambda config, total_steps, num_validations=0: None


@fault("miniformer.train_config:TrainConfig.cross_check")
def found_settings_are_refused_beside_the_wish(original):
    """A run is refused after its automatic settings are resolved."""
    return lambda self: [*original(self), *self.overridden_settings()]


@fault("miniformer.train_config:TrainConfig.overridden_settings")
def replaced_settings_pass(original):
    """Fields that automatic settings replace are accepted without an error."""
    return lambda self: []


@fault("miniformer.training.report.model_card:format_number")
def card_needs_finite_figures(original):
    """NaN and infinite metrics are empty in the model card."""
    return lambda value: original(value) if abs(value) < float("inf") else ""


@fault("miniformer.training.setup.prepare:prepare")
def decoder_is_not_causal(original):
    """`--model decoder` builds a bidirectional Transformer."""

    def prepare(config, *args, **options):
        import dataclasses

        if config.model == "decoder" and config.task != "language_modeling":
            config = dataclasses.replace(config, model=None)
        return original(config, *args, **options)

    return prepare


@fault("miniformer.training.setup.auto_tune:find_lr")
def rates_are_tried_on_single_batches(original):
    """The learning rate finder makes a step for each batch and ignores accumulation."""

    def find_lr(*args, accumulate_grad_batches=1, **options):
        return original(*args, **options)

    return find_lr


@fault("miniformer.training.setup.pretraining:pretrain_config")
def pretraining_ignores_batch_tokens(original):
    """Pretraining batches have no limit of tokens."""

    def pretrain_config(run):
        import dataclasses

        limit = (run.config.pretrain or {}).get("batch_tokens")
        return dataclasses.replace(original(run), batch_tokens=limit)

    return pretrain_config


@fault("miniformer.training.pretrain:load_pretrained_weights")
def pretraining_leaves_no_weights(original):
    """A run starts from random weights after its pretraining."""
    return lambda model, directory, model_kind: (0, [])


@fault("miniformer.training.setup.resolve:resolve_precision")
def precision_is_float32_unless_given(original):
    """`precision=auto` is float32 on every machine."""
    return lambda hardware, device_type: (
        "float32" if hardware.precision == "auto" else original(hardware, device_type)
    )


@fault("miniformer.training.setup.resolve:Resolution.summary")
def summary_leaves_out_resolved_settings(original):
    """A run prints the settings that are given, and not those that it determined."""

    def summary(self, given="given"):
        import dataclasses

        return original(dataclasses.replace(self, resolved=[]), given)

    return summary


@fault("miniformer.training.setup.resolve:Resolution.summary")
def changed_settings_are_those_of_the_resumed_run(original):
    """A run that resumes prints a changed setting as one of the resumed run."""

    def summary(self, given="given"):
        return original(self, "of the resumed run" if self.saved else given)

    return summary


@fault("miniformer.training.run:prepare")
def refused_resume_changes_the_run(original):
    """The settings of a run are saved before its data is checked."""

    def prepare(config, console, checkpoint=None, in_memory=None):
        from pathlib import Path

        from miniformer.utils.atomic import write_json

        if checkpoint is not None:
            write_json(Path(config.resume) / "train_config.json", config.to_dict())
        return original(config, console, checkpoint, in_memory)

    return prepare


@fault("miniformer.training.report.charts:clean_text")
def long_labels_leave_no_space_for_the_chart(original):
    """Titles and labels of charts are not truncated."""

    class Untruncated(str):
        def __len__(self):
            return 0

    return lambda value: Untruncated(original(value))


@fault("miniformer.training.setup.resolve:resolve_config")
def find_lr_requires_a_default(original):
    """The default learning rate is resolved although `find_lr` replaces it."""

    def resolve_config(config):
        import dataclasses

        return original(dataclasses.replace(config, find_lr=False))

    return resolve_config


@fault("miniformer.training.setup.prepare_start:make_data")
def start_ignores_the_order_of_batches(original):
    """A run from a loaded model has the usual order of batches."""

    def make_data(config, records, task, tokenizer, **options):
        import dataclasses

        config = dataclasses.replace(config, batch_order=None)
        return original(config, records, task, tokenizer, **options)

    return make_data


@fault("miniformer.training.setup.run_setup:RunSetup.data_settings")
def model_directories_have_the_usual_batch_size(original):
    """The data settings of a model directory have the default batch size."""

    def data_settings(self):
        import dataclasses

        return dataclasses.replace(original.fget(self), batch_size=16)

    return property(data_settings)


@fault("miniformer.training.setup.tokenizers:run_tokenizer")
def tokenizer_has_read_the_validation_data(original):
    """The tokenizer is trained on the records that are set aside, too."""

    def run_tokenizer(settings, task, records, resume_dir):
        return original(settings, task, getattr(records, "records", records), resume_dir)

    return run_tokenizer


@fault("miniformer.training.api:train_config")
def records_in_memory_are_others(original):
    """A run on records in memory leaves the last one out."""

    def train(config, *, console=None, callbacks=(), records=None):
        records = {name: items[:-1] for name, items in (records or {}).items()}
        return original(config, console=console, callbacks=callbacks, records=records)

    return train


@fault("miniformer.training.setup.prepare:check_same_data")
def resume_takes_other_records(original):
    """A run resumes on other records than before."""
    return lambda records, checkpoint: None


@fault("miniformer.training.tuning.hardware:cpu_threads")
def threads_have_no_effect(original):
    """`threads` is stored and not used."""
    return lambda number: original(None)


@fault("miniformer.training.tuning.hardware:available_cores")
def limits_of_a_container_are_ignored(original):
    """The cores are those of the machine, also in a container with fewer."""
    return lambda limits=None: 64.0


@fault("miniformer.training.setup.limits:max_total_steps")
def estimate_ignores_epochs(original):
    """The estimate is that of one epoch."""
    import dataclasses

    return lambda config, data: original(dataclasses.replace(config, max_epochs=1), data)


@fault("miniformer.training.cross_validation:_read_records")
def predictions_are_of_the_training_records(original):
    """Out-of-fold predictions are those of a model that has seen the record."""

    def read_records(config, task, in_memory):
        records, numbers = original(config, task, in_memory)
        return records, numbers % config.folds + 1

    return read_records


@fault("miniformer.training.cross_validation:CrossValidationResult.predictions")
def train_with_folds_returns_no_predictions(original):
    """The result has the predictions of the first fold only."""
    return lambda self: [line for line in original(self) if line["fold"] == 1]


@fault("miniformer.training.cross_validation:latest_checkpoint")
def folds_start_again(original):
    """An interrupted fold starts from its first step."""
    return lambda run_dir: None


@fault("miniformer.training.report.verdicts:_overfitting")
def no_run_overfits(original):
    """Overfitting is not named."""
    return lambda train, loss, metric, best_step, saved_step: iter(())


@fault("miniformer.training.report.verdicts:_best_step")
def first_of_equal_metrics_is_the_best(original):
    """Of equal metrics the first one is taken for the best model."""

    def best_step(rows, metric, maximize):
        return original([{**row, "val_loss": 1.0} for row in rows], metric, maximize)

    return best_step


@fault("miniformer.training.report.verdicts:find_verdicts")
def early_stopping_hides_the_verdict(original):
    """The annealed end of a run that stopped early counts as its trend."""

    def find_verdicts(rows, *, stop_step=None, **options):
        return original(rows, **options)

    return find_verdicts


@fault("miniformer.training.callbacks.budget:Budget.measure_pace")
def time_left_counts_earlier_processes(original):
    """The time left follows the mean speed of all processes of a run, slow starts included."""
    return lambda self, progress: None


@fault("miniformer.training.callbacks.progress_line:format_status")
def the_line_is_as_long_as_it_likes(original):
    """The line in a terminal does not depend on its width."""
    return lambda status, width=None: original(status)


@fault("miniformer.training.report.page:render_curves")
def mark_is_on_the_loss(original):
    """The lowest loss is marked, whatever selects the best model."""

    def render_curves(rows, loss_unit, *, metric="loss", best_step=None):
        return original(rows, loss_unit)

    return render_curves


@fault("miniformer.training.report.page:_verdict_list")
def report_ends_with_what_to_do(original):
    """The report has no verdicts."""
    return lambda report: ""


@fault("miniformer.training.report.best_evaluation:evaluate_best")
def report_shows_training_data(original):
    """The predictions in the report are those on the training data."""

    def evaluate_best(run, directory, split):
        run.data.chunks["train"], run.data.chunks["val"] = (
            run.data.chunks["val"], run.data.chunks["train"],
        )  # fmt: skip
        return original(run, directory, split)

    return evaluate_best


# Wide head.


@fault("miniformer.training.tuning.wide_head.ngrams:count_ngrams")
def ngrams_of_one_text_are_kept(original):
    """An n-gram of a single text is a feature."""
    import torch

    from miniformer.model.wide_head.ngrams import UNKNOWN, ngram_keys

    def count_ngrams(data, *, length, positions):
        keys = [
            ngram_keys(inputs, length=length, positions=positions).flatten()
            for inputs in data.inputs()
        ]
        keys, counts = torch.unique(torch.cat(keys), return_counts=True)
        return keys[keys != UNKNOWN], counts[keys != UNKNOWN]

    return count_ngrams


@fault("miniformer.training.tuning.wide_head.ngrams:count_ngrams")
def repeated_ngrams_are_other_texts(original):
    """A text counts once for each occurrence of an n-gram."""
    import torch

    from miniformer.model.wide_head.ngrams import UNKNOWN, ngram_keys

    def count_ngrams(data, *, length, positions):
        keys = [
            ngram_keys(inputs, length=length, positions=positions).flatten()
            for inputs in data.inputs()
        ]
        keys, counts = torch.unique(torch.cat(keys), return_counts=True)
        repeated = (keys != UNKNOWN) & (counts > 1)
        return keys[repeated], counts[repeated]

    return count_ngrams


@fault("miniformer.training.tuning.wide_head.linear:LinearProblem.solve")
def the_penalty_grows_with_the_examples(original):
    """The penalty is that of one example."""

    def solve(self, strength, start):
        return original(self, strength / self.features.shape[0], start)

    return solve


@fault("miniformer.training.tuning.wide_head.linear:LinearProblem.solve")
def the_bias_is_not_fitted(original):
    """The bias stays where it starts."""

    def solve(self, strength, start):
        return original(self, strength, start)[0], start[1]

    return solve


@fault("miniformer.training.tuning.wide_head.fit:_is_possible")
def the_wide_head_reads_every_task(original):
    """Pretrained weights get a wide head, too."""

    def is_possible(config, model_config, data):
        return original(dataclasses.replace(config, init_from=None), model_config, data)

    return is_possible


@fault("miniformer.training.tuning.wide_head.linear:select_strength")
def the_first_group_is_taken(original):
    """The group with the highest held-out loss is the first."""

    def select_strength(config, task, features, labels):
        selection = original(config, task, features, labels)
        return selection._replace(loss=-selection.loss)

    return select_strength


@fault("miniformer.training.tuning.wide_head.matrix:FeatureMatrix.select")
def matrices_select_the_first_rows(original):
    """The features of other examples are selected."""

    def select(self, rows):
        import torch

        return original(self, torch.arange(len(rows)))

    return select


@fault("miniformer.training.tuning.wide_head.data:WideData.labels")
def labels_are_in_another_order(original):
    """Labels are in the order of the records, not of the batches."""

    def labels(self):
        return {name: value.flip(0) for name, value in original(self).items()}

    return labels


@fault("miniformer.training.tuning.wide_head.data:WideData.labels")
def all_wide_outputs_are_fitted_to_the_first(original):
    """Each of several outputs learns the labels of the first."""

    def labels(self):
        batch = original(self)
        if batch["labels"].ndim == 2:
            batch["labels"] = batch["labels"][:, :1].expand_as(batch["labels"])
        return batch

    return labels


@fault("miniformer.training.tuning.wide_head.series:propose_series")
def short_series_have_kernels(original):
    """Series that are shorter than a kernel have features of kernels."""

    def propose_series(config, data):
        kernels = {"type": "kernels", "size": 84, "width": config.input_dim, "dilations": 1}
        groups = original(config, data)
        return groups if groups[-1]["type"] == "kernels" else [*groups, kernels]

    return propose_series


@fault("miniformer.training.tuning.wide_head.rbf:_total_variance")
def landmarks_ignore_the_variance(original):
    """The width of the kernel is not that of the data."""
    return lambda block: 1.0


@fault("miniformer.training.tuning.wide_head.rbf:whitening")
def kernel_is_not_whitened(original):
    """The penalty is that on the weights of the kernel's values."""
    import torch

    return lambda features: torch.eye(features.size)


@fault("miniformer.training.tuning.wide_head.data:select_rows")
def rows_of_a_kernel_are_the_first_ones(original):
    """Other rows of the inner features than those that are asked for."""
    import torch

    return lambda block, rows: original(block, torch.arange(len(rows)))


@fault("miniformer.training.tuning.wide_head.rbf:KernelGroup.own_weight")
def weights_of_whitened_features_are_kept(original):
    """The model has the weights of the whitened features."""
    return lambda self, weight: weight


@fault("miniformer.training.tuning.wide_head.fit:_has_kernel_model")
def kernels_of_positions_are_left_out(original):
    """Kernels are those of numbers alone."""
    return lambda group: group.settings["type"] != "ngrams" and original(group)


@fault("miniformer.training.tuning.wide_head.ngrams:propose_ngrams")
def second_texts_are_left_out(original):
    """Pairs have n-grams of both texts alone."""

    def propose_ngrams(config, data):
        groups = original(config, data)
        return [group for group in groups if group["type"] != "second_text"]

    return propose_ngrams


@fault("miniformer.training.tuning.wide_head.linear:LinearProblem._bias")
def thresholds_of_the_wide_head_may_ascend(original):
    """Biases of ordered outputs are free."""
    return lambda self, free: free * 1.0


@fault("miniformer.training.callbacks.wide_mix:WideMix.on_validation_start")
def weights_of_the_wide_head_change_after_a_validation(original):
    """The weights that a validation fits replace those that it has measured."""

    def on_validation_start(self, trainer, module):
        original(self, trainer, module)
        head = module.model.wide_head
        head.next_mix = head.mix

    return on_validation_start


@fault("miniformer.training.callbacks.wide_mix:fit_mix")
def weights_of_the_wide_head_may_be_negative(original):
    """The outputs that help less are subtracted."""

    def fit_mix(module, batch):
        mix = original(module, batch)
        return mix - 2 * mix.min()

    return fit_mix


@fault("miniformer.training.callbacks.wide_mix:fit_mix")
def ordered_outputs_may_vanish(original):
    """The weights of ordered outputs may both be 0."""

    def fit_mix(module, batch):
        mix = original(module, batch)
        return mix * (mix > 0.01)

    return fit_mix


@fault("miniformer.training.resume.storage:load_checkpoint_tensors")
def the_wide_head_is_lost_on_resume(original):
    """A resumed run has a wide head that is not fitted."""

    def load_checkpoint_tensors(checkpoint_dir, tensors):
        rest = {name: tensor for name, tensor in tensors.items() if "wide_head" not in name}
        return original(checkpoint_dir, rest)

    return load_checkpoint_tensors


@fault("miniformer.training.tuning.tokenizer_defaults:resolve_tokenizer")
def targets_with_spaces_are_characters(original):
    """Any target of seq2seq is written by characters."""
    from miniformer.config.resolved import ResolvedSetting

    def resolve_tokenizer(config, model, task, records):
        if config.tokenizer is None and task.text_fields is not None and records is not None:
            return ResolvedSetting("tokenizer", "char", "targets have no spaces")
        return original(config, model, task, records)

    return resolve_tokenizer


@fault("miniformer.training.setup.estimate:_run_seconds")
def estimate_leaves_validation_out(original):
    """The estimated time is that of the training steps alone."""
    return lambda run, steps, step_seconds: (steps or 0) * step_seconds


@fault("miniformer.training.setup.builders:_build_named_callbacks")
def named_callbacks_are_not_built(original):
    """Callbacks of the settings are ignored."""
    return lambda settings: []


@fault("miniformer.training.evaluate:_write_report")
def report_does_not_name_the_reason_of_a_stop(original):
    """The report of a run that a callback stopped reads as that of a complete one."""

    def write_report(
        run, callbacks, artifacts, console, metrics, last_step, parent_folder, verdicts, evaluation
    ):
        requests = callbacks._stop_requests
        reason, requests.reason = requests.reason, None
        try:
            return original(
                run, callbacks, artifacts, console, metrics, last_step, parent_folder, verdicts,
                evaluation,
            )  # fmt: skip
        finally:
            requests.reason = reason

    return write_report


@fault("miniformer.training.callbacks.stop_request:StopRequests.load_state_dict")
def stopped_run_learns_on(original):
    """A run that a callback stopped trains on when it is resumed."""
    return lambda self, state: None


@fault("miniformer.training.callbacks.stop_request:all_gather_object")
def only_rank_0_stops_a_run(original):
    """A request of another process than that of rank 0 is ignored."""
    return lambda value: original(value)[:1]


@fault("miniformer.training.resume.auto:_unfinished_runs")
def complete_run_is_resumed(original):
    """`resume=auto` resumes complete runs, too."""

    def unfinished_runs(work_dir, name):
        for path in sorted(work_dir.glob(f"{name}*")):
            (path / "result.json").unlink(missing_ok=True)
        return original(work_dir, name)

    return unfinished_runs


@fault("miniformer.training.resume.auto:_last_step")
def auto_always_starts_anew(original):
    """`resume=auto` finds no checkpoint."""
    return lambda folder: None


@fault("miniformer.training.resume.auto:_differences")
def auto_resumes_another_run(original):
    """`resume=auto` resumes a run with other settings."""
    return lambda stored, given: ({}, original(stored, given)[1])


@fault("miniformer.training.resume.config:CHANGEABLE_FIELDS")
def any_setting_may_change_at_resuming(original):
    """A resumed run may change its seed."""
    return {**original, "seed": "auto"}


@fault("miniformer.training.resume.auto:_unfinished_runs")
def auto_reads_the_newest_run_alone(original):
    """A newer run with other settings hides the run to resume."""
    from itertools import islice

    return lambda work_dir, name: islice(original(work_dir, name), 1)


@fault("miniformer.training.optim.optimizers:_count_changes")
def fused_step_leaves_versions_of_weights(original):
    """Weights that a fused step has changed have the version of before."""
    return lambda optimizer, *args: None


@fault("miniformer.training.in_memory:_copy_pipeline")
def a_start_in_memory_has_new_weights(original):
    """The weights of the start are drawn again."""

    def _copy_pipeline(start):
        result = original(start)
        result.model = type(start.model)(start.model.config)
        return result

    return _copy_pipeline


@fault("miniformer.training.in_memory:_copy_pipeline")
def training_in_memory_changes_its_start(original):
    """The model of the start is trained itself."""
    return lambda start: start


@fault("miniformer.training.resume.optimizer_state:OptimizerState.load_into")
def an_optimizer_in_memory_starts_anew(original):
    """The state of an optimizer is ignored."""
    return lambda self, model, optimizer: None


@fault("miniformer.training.resume.optimizer_state:OptimizerState._check")
def any_optimizer_state_is_loaded(original):
    """The state is not compared with the optimizer."""
    return lambda self, model, optimizer: None


@fault("miniformer.training.isolation:set_rng_state")
def random_states_leak_from_runs(original):
    """A run leaves its own random states behind."""
    return lambda state: None


@fault("miniformer.training.in_memory:_Training._keep_best")
def the_best_weights_in_memory_are_the_last(original):
    """The weights of the best validation are not kept."""
    return lambda self, metrics: None


@fault("miniformer.training.in_memory:L")
def a_run_depends_on_earlier_draws(original):
    """A run in memory draws its weights from the random state of the process."""
    return types.SimpleNamespace(seed_everything=lambda seed, **options: seed)


@fault("miniformer.training.setup.prepare_start:resolve_lr")
def a_start_has_the_lr_of_a_new_model(original):
    """The learning rate for trained weights is that for new ones."""
    return lambda optimizer, *, from_scratch: original(optimizer, from_scratch=True)


@fault("miniformer.training.report.notebook_progress:render_curve")
def curve_is_upside_down(original):
    """The curve of a notebook has its largest loss at the bottom."""
    return lambda rows: original(
        [
            {name: -value if name.endswith("_loss") else value for name, value in row.items()}
            for row in rows
        ]
    )


@fault("miniformer.training.callbacks.progress:is_notebook")
def notebook_has_plain_lines(original):
    """A notebook shows lines of text."""
    return lambda console: False


@fault("miniformer:_import_progress_bars")
def import_in_a_notebook_warns(original):
    """A kernel without ipywidgets prints a warning of tqdm at the first import."""
    return lambda: None


@fault("miniformer.training.setup.run_folder:RunLock.acquire")
def second_run_shares_a_folder(original):
    """Two processes may train in the same folder."""
    return lambda self, folder: folder


@fault("miniformer.training.setup.run_folder:WORKER_SECONDS")
def a_lock_does_not_wait_for_workers(original):
    """A run that continues a killed one is refused while worker processes of that one end."""
    return -1.0


@fault("miniformer.training.report.verdicts:_is_perfect")
def perfect_runs_are_to_be_longer(original):
    """A run whose validation has no error is advised to be longer."""
    return lambda rows, metric: False


@fault("miniformer.training.callbacks.validation:request_validation")
def epochs_end_with_the_batches_of_the_first(original):
    """All epochs have as many batches as the first one."""

    def request_validation(trainer, due):
        batches = trainer.fit_loop.max_batches
        original(trainer, due)
        trainer.fit_loop.max_batches = batches

    return request_validation


@fault("miniformer.training.tuning.wide_head.matrix:_product")
def a_large_product_is_one_operation(original):
    """A product is computed as a whole."""
    return lambda matrix, dense: matrix @ dense
