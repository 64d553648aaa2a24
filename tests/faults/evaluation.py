"""Faults in `miniformer.evaluation`, and in the results by record that tasks give it."""

import dataclasses

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


@fault("miniformer.tasks.common.resampling:matthews_correlation")
def matthews_of_one_class_is_zero(original):
    """Matthews' correlation of two classes is 0 where it is not defined."""

    def correlation(hits, predicted, true):
        value = original(hits, predicted, true)
        constant = (true > 0).sum(-1) * (predicted > 0).sum(-1) < 2
        return np.where(constant, 0.0, value)

    return correlation


@fault("miniformer.evaluation.intervals:interval")
def interval_is_of_90_percent(original):
    """The interval leaves out 10 % of the resamples."""
    return lambda values: original(np.clip(values, *np.percentile(values, [5, 95])))


@fault("miniformer.evaluation.intervals:wilson_interval")
def wilson_interval_is_that_of_wald(original):
    """The interval of a proportion is that of the normal approximation, without a width at 1."""

    def wald(share, count):
        half = 1.959964 * (share * (1 - share) / count) ** 0.5
        return max(0.0, share - half), min(1.0, share + half)

    return wald


@fault("miniformer.evaluation.evaluation:_intervals")
def equal_resamples_are_an_interval(original):
    """A metric that is 1 in all resamples has an interval without a width."""

    def intervals(task, results, bootstrap):
        from miniformer.evaluation.intervals import interval

        values = bootstrap.metrics(len(results), lambda x: task.resampled_metrics(results, x))
        return {name: interval(x) for name, x in values.items() if interval(x) is not None}

    return intervals


@fault("miniformer.evaluation.intervals:Bootstrap.counts")
def resamples_are_permutations(original):
    """Resamples have each record once."""

    def counts(self, num_records):
        for chunk in original(self, num_records):
            yield chunk * 0 + 1

    return counts


@fault("miniformer.evaluation.intervals:mcnemar_p_value")
def mcnemar_is_one_sided(original):
    """The test looks for a better first model only."""
    return lambda first, second: original(first, second) / 2


@fault("miniformer.evaluation.calibration:calibrate")
def calibration_bins_weigh_the_same(original):
    """The error is a mean over bins."""

    def calibrate(results):
        calibration = original(results)
        if calibration is None:
            return None
        gaps = [abs(item["confidence"] - item["accuracy"]) for item in calibration.bins]
        return dataclasses.replace(calibration, ece=sum(gaps) / len(gaps))

    return calibrate


@fault("miniformer.evaluation.class_table:_class_metrics")
def precision_and_recall_are_exchanged(original):
    """Precision is shown as recall."""
    return lambda name, values, support, predicted: original(
        name, values[[1, 0, 2]], support, predicted
    )


@fault("miniformer.evaluation.class_table:class_table")
def absent_classes_lower_the_macro_average(original):
    """The macro average is that of all classes, whether they occur or not."""

    def class_table(results):
        rows, averages = original(results)
        if averages:
            macro = [sum(getattr(row, x) for row in rows) / len(rows) for x in ("recall", "f1")]
            averages[0] = dataclasses.replace(averages[0], recall=macro[0], f1=macro[1])
        return rows, averages

    return class_table


@fault("miniformer.evaluation.evaluation:_intervals")
def one_record_has_an_interval(original):
    """The interval of one record begins and ends at its metric."""

    def _intervals(task, results, bootstrap):
        totals = task.resampled_metrics(results, np.ones((1, len(results)), dtype=np.int64))
        known = original(task, results, bootstrap)
        return known or {name: (float(x[0]), float(x[0])) for name, x in totals.items()}

    return _intervals


@fault("miniformer.evaluation.evaluation:_groups")
def groups_have_the_metrics_of_all(original):
    """Each group has the metrics of all records."""

    def groups(task, results, records, by, bootstrap):
        created, omitted = original(task, results, records, by, bootstrap)
        ones = np.ones((1, len(results)), dtype=np.int64)
        totals = task.resampled_metrics(results, ones)
        metrics = {name: float(totals[name][0]) for name in created[0].metrics}
        return [dataclasses.replace(group, metrics=metrics) for group in created], omitted

    return groups


@fault("miniformer.evaluation.results:EvaluationResults.worst")
def worst_records_include_right_ones(original):
    """Records that are predicted correctly appear among the wrong ones."""

    def worst(self, count=20):
        return original(dataclasses.replace(self, results=_without_correct(self.results)), count)

    return worst


def _without_correct(results):
    return results and dataclasses.replace(results, correct=None)


@fault("miniformer.evaluation.comparison:compare")
def comparison_is_not_paired(original):
    """The models are resampled independently of each other."""

    def compare(task, results, other_task, other_results, bootstrap, name):
        class Shuffled(type(other_task)):
            def resampled_metrics(self, results, counts):
                return super().resampled_metrics(results, counts[:, ::-1])

        other_task = Shuffled(**other_task.to_dict())
        return original(task, results, other_task, other_results, bootstrap, name)

    return compare


@fault("miniformer.evaluation.text:_shorten")
def evaluation_text_is_wide(original):
    """Lines of the terminal are not shortened."""
    return lambda text, width: text


@fault("miniformer.evaluation.sections:confusion_section")
def confusion_matrix_is_transposed(original):
    """Rows are predicted classes."""

    def section(evaluation):
        results = evaluation.results
        if results is None or results.confusion is None:
            return ""
        results = dataclasses.replace(results, confusion=results.confusion.T)
        return original(dataclasses.replace(evaluation, results=results))

    return section


@fault("miniformer.evaluation.report:write_report")
def evaluation_report_replaces_other_files(original):
    """The report ignores its path."""
    return lambda path, evaluation: original(path.with_name("evaluation.html"), evaluation)


@fault("miniformer.checkpoint.data_settings:StoredDataSettings.batches")
def evaluation_ignores_sizes_of_training(original):
    """An evaluation has batches of its own size."""
    return lambda self: dataclasses.replace(original(self), batch_size=7)


@fault("miniformer.checkpoint.data_settings:StoredDataSettings.mapping")
def columns_of_training_are_forgotten(original):
    """Columns of the training data are not used again."""
    return lambda self: type(original(self))()


@fault("miniformer.checkpoint.data_settings:_named")
def header_is_replaced_by_columns_of_training(original):
    """The names of columns of a file without a header stay in effect for any file."""
    return lambda fields: set()


@fault("miniformer.checkpoint.data_settings:StoredDataSettings.override")
def other_columns_lose_their_kind(original):
    """Values of a renamed column are texts."""

    def override(self, fields):
        mapping = original(self, fields)
        kinds = (self.fields or {}).get("kinds")
        return dataclasses.replace(mapping, kinds=kinds)

    return override


@fault("miniformer.commands.evaluate:_output_paths")
def predictions_are_not_written(original):
    """Only the report is written."""
    return lambda out, predictions, files: (original(out, predictions, files)[0], None)


@fault("miniformer.config.command_line:resolve_model")
def run_folder_is_refused(original):
    """A run folder does not stand for its best model."""
    return lambda directory, **options: directory
