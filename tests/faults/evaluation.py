"""Faults in `miniformer.evaluation`, and in the results by record that tasks give it."""

import numpy as np

from tests.faults import fault


@fault("miniformer.evaluation.run_batches:_record_indices")
def results_belong_to_other_records(original):
    """Results are in the order of the batches."""

    def record_indices(chunk, batcher, plan):
        indices = original(chunk, batcher, plan)
        return indices if indices.dim() == 2 else indices.sort().values

    return record_indices


@fault("miniformer.data.batching.packing:PackedBatcher.label_examples")
def label_belongs_to_the_next_text(original):
    """A token counts for the text after its own."""

    def label_examples(self, chunk, starts):
        return np.minimum(original(self, chunk, starts) + 1, len(chunk) - 1)

    return label_examples


@fault("miniformer.tasks.common.losses:TokenLossRecorder.cross_entropy")
def token_losses_are_means(original):
    """Each token has the mean loss of its batch."""

    def cross_entropy(self, features, labels, **options):
        total = original(self, features, labels, **options)
        self._losses[-1] = self._losses[-1] * 0 + self._losses[-1].mean()
        return total

    return cross_entropy


@fault("miniformer.tasks.common.record_results:RecordResults.in_data_order")
def results_keep_the_order_of_batches(original):
    """Rows are not sorted by record."""
    return lambda self: self


@fault("miniformer.tasks.common.resampling:sum_records")
def resample_ignores_repetitions(original):
    """A record that a resample has twice counts once."""
    return lambda counts, values: original(counts > 0, values)


@fault("miniformer.tasks.common.resampling:resampled_ranks")
def ranks_are_those_of_all_records(original):
    """Ranks are not computed within the resample."""
    return lambda counts, values: original(np.ones_like(counts), values)


@fault("miniformer.tasks.common.text_metrics:_chrf")
def chrf_weighs_precision_like_recall(original):
    """chrF is chrF1."""

    def chrf(sums):
        return original(sums[..., [0, 1, 2]] * 0 + sums[..., [1, 0, 2]])

    return chrf
