"""Faults of sparse training."""

from tests.faults import fault

_FOLDER = "miniformer.compression.sparse_training"


@fault("miniformer.config.sparse_training:SparseTrainingConfig.exchanged_share")
def rigl_schedule_is_off_by_one(original):
    """The share falls to zero at the end of the run, not at `end`."""
    return lambda self, progress: original(self, progress * self.last_share)


@fault("miniformer.config.sparse_training:SparseTrainingConfig.removed_share")
def movement_schedule_is_linear(original):
    """The number of zeros rises linearly."""

    def removed_share(self, progress):
        return 1 - (1 - original(self, progress)) ** (1 / 3)

    return removed_share


@fault("miniformer.train_config:TrainConfig.all_callbacks")
def random_masks_ignore_trained_weights(original):
    """The first masks of RigL are random for trained weights, too."""

    def all_callbacks(self):
        return [
            {**item, "initial": "random"} if isinstance(item, dict) and "initial" in item else item
            for item in original(self)
        ]

    return all_callbacks


@fault(f"{_FOLDER}.densities:weight_counts")
def matrices_have_too_many_weights(original):
    """The counts are rounded up."""
    return lambda shapes, sparsity, erk: [n + 1 for n in original(shapes, sparsity, erk)]


@fault(f"{_FOLDER}.densities:weight_counts")
def erk_is_uniform(original):
    """All matrices have the same density."""
    return lambda shapes, sparsity, erk: original(shapes, sparsity, False)


@fault(f"{_FOLDER}.matrices:SparseMatrix.set_mask")
def grown_weights_keep_old_moments(original):
    """New weights have the moments that they had when they were dropped."""
    return lambda self, mask, optimizer, averages: original(
        self, mask, type("Empty", (), {"state": {}})(), averages
    )


@fault(f"{_FOLDER}.matrices:SparseMatrix.set_mask")
def averages_keep_dropped_weights(original):
    """Averages of weights still hold dropped ones."""
    return lambda self, mask, optimizer, averages: original(self, mask, optimizer, {})


@fault(f"{_FOLDER}.matrices:SparseMatrix.apply_mask")
def masks_are_not_applied_after_a_step(original):
    """An optimizer step changes weights outside of the mask."""
    return lambda self: None


@fault(f"{_FOLDER}.rigl:drop_and_grow")
def rigl_drops_the_largest(original):
    """The largest weights are dropped."""
    return lambda weight, gradient, mask, count: original(
        1 / (weight.abs() + 1e-6), gradient, mask, count
    )


@fault(f"{_FOLDER}.rigl:drop_and_grow")
def rigl_grows_trained_weights(original):
    """Gradients of all weights are compared, so trained ones are grown again."""

    def drop_and_grow(weight, gradient, mask, count):
        from miniformer.compression.sparse_training.matrices import largest

        retained = largest(weight.abs().masked_fill(~mask, -1.0), int(mask.sum()) - count)
        return retained | largest(gradient.abs(), count)

    return drop_and_grow


@fault(f"{_FOLDER}.rigl:RigL.new_mask")
def rigl_loses_weights(original):
    """One weight less with each change of a mask."""

    def new_mask(self, matrix, count, progress):
        mask = original(self, matrix, count, progress).clone()
        mask.view(-1)[int(mask.flatten().int().argmax())] = False
        return mask

    return new_mask


@fault(f"{_FOLDER}.rigl:RigL.is_due")
def rigl_changes_masks_to_the_end(original):
    """Masks change until the end of the run."""
    return lambda self, step, progress: original(self, step, 0.0)


@fault(f"{_FOLDER}.movement:Movement.add_scores")
def scores_have_the_wrong_sign(original):
    """Weights that move away from zero are removed."""

    def add_scores(self, matrix):
        before = self.scores[matrix.name].clone() if matrix.name in self.scores else 0.0
        original(self, matrix)
        self.scores[matrix.name] = 2 * before - self.scores[matrix.name]

    return add_scores


@fault(f"{_FOLDER}.movement:Movement.new_mask")
def removed_weights_are_lost(original):
    """Weights that return begin at zero."""

    def new_mask(self, matrix, count, progress):
        self.removed[matrix.name].zero_()
        return original(self, matrix, count, progress)

    return new_mask


@fault(f"{_FOLDER}.callback:SparseTraining._averages")
def masks_of_averages_are_old(original):
    """Averages of weights are not masked."""
    return lambda self, trainer: {}


@fault(f"{_FOLDER}.callback:_forget_validations")
def sparse_models_are_compared_with_dense_ones(original):
    """A model with fewer zeros may stay the best one."""
    return lambda trainer: None


@fault(f"{_FOLDER}.callback:SparseTraining._adopt")
def loaded_weights_lose_their_masks(original):
    """Masks stay as they were when other weights are loaded."""

    def adopt(self, trainer):
        self.is_fixed = True
        for matrix in self.matrices:
            matrix.apply_mask()

    return adopt


@fault(f"{_FOLDER}.callback:SparseTraining.setup")
def sharded_models_are_trained_sparsely(original):
    """A model that is divided among devices is accepted."""
    return lambda self, trainer, module, stage: None


@fault(f"{_FOLDER}.callback:SparseTraining.load_state_dict")
def masks_are_drawn_again_on_resume(original):
    """A resumed run has new masks."""
    return lambda self, state: None


@fault(f"{_FOLDER}.callback:SparseTraining.load_state_dict")
def scores_are_lost_on_resume(original):
    """Scores begin again at zero."""

    def load_state_dict(self, state):
        scores = {name: 0 * x for name, x in state.get("scores", {}).items()}
        original(self, {**state, "scores": scores} if scores else state)

    return load_state_dict
