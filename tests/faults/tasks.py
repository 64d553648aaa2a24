"""Faults in `miniformer.tasks`."""

import dataclasses

from tests.faults import fault

# Losses: sums and counts.


@fault("miniformer.tasks.common.losses:token_loss")
def loss_counts_unlabelled_positions(original):
    """The count of a loss includes positions that are not predicted."""

    def token_loss(model, features, labels, label_smoothing=0.0):
        loss, count = original(model, features, labels, label_smoothing)
        return loss, count * 0 + labels.numel()

    return token_loss


@fault("miniformer.tasks.common.losses:token_loss")
def validation_is_smoothed(original):
    """Label smoothing stays on in validation."""

    def token_loss(model, features, labels, label_smoothing=0.0):
        labeled = labels != -100
        features, labels = features[labeled], labels[labeled]
        loss = model.cross_entropy(features, labels, label_smoothing=label_smoothing)
        return loss, labeled.sum().to(loss)

    return token_loss


@fault("miniformer.tasks.base:mean")
def mean_is_over_batches(original):
    """A mean over batches weighs a small batch like a large one."""

    def mean(batch_stats, name, count):
        means = [float(stats[name]) / max(float(stats[count]), 1e-12) for stats in batch_stats]
        return sum(means) / len(means)

    return mean


@fault("miniformer.tasks.common.losses:symmetric_kl")
def r_drop_compares_a_pass_with_itself(original):
    """The divergence of two passes is always 0."""
    return lambda first, second: original(first, first)


@fault("miniformer.tasks.classification:Classification._weighted_cross_entropy")
def weighted_loss_is_divided_by_records(original):
    """The count of a weighted loss is the number of records."""

    def loss(self, logits, labels, label_smoothing=0.0):
        loss, _ = original(self, logits, labels, label_smoothing)
        return loss, (labels >= 0).sum()

    return loss


@fault("miniformer.tasks.classification:Classification._check_label")
def label_that_training_never_saw_passes(original):
    """Validation labels are not checked."""

    def check_label(self, value):
        import dataclasses

        return original(dataclasses.replace(self, classes=None, class_weights=None), value)

    return check_label


# Layout: inputs and labels.


@fault("miniformer.tasks.common.seq2seq_batch:collate_seq2seq")
def decoder_sees_its_label(original):
    """A decoder's input is its label, not the token before."""

    def collate_seq2seq(examples, random=None, **ids):
        batch = original(examples, random, **ids)
        batch["target"] = batch["labels"].clamp_min(0)
        return batch

    return collate_seq2seq


@fault("miniformer.tasks.prefix_language_modeling:collate_prefixes")
def encoder_sees_the_first_label(original):
    """The source of a prefix model ends with the first label."""

    def collate_prefixes(examples, random, *, boundary_id):
        batch = original(examples, random, boundary_id=boundary_id)
        lengths = (batch["source"] != 0).sum(1) if "source_mask" not in batch else None
        last = batch["source"].shape[1] - 1
        rows = range(len(batch["source"]))
        for row in rows:
            end = last if lengths is not None else int(batch["source_mask"][row].sum()) - 1
            batch["source"][row, end] = batch["labels"][row, 0]
        return batch

    return collate_prefixes


@fault("miniformer.tasks.language_modeling:LanguageModeling.encode")
def documents_have_no_boundary(original):
    """Documents have no BOS token."""

    def encode(self, records, tokenizer, seq_len):
        return original(self, [{**record, "continues": True} for record in records], tokenizer,
                        seq_len)  # fmt: skip

    return encode


@fault("miniformer.tasks.masked_lm:collate_masked")
def special_tokens_are_guessed(original):
    """Special tokens are masked like words."""

    def collate_masked(examples, random, *, special, **options):
        return original(examples, random, special=special[:0], **options)

    return collate_masked


@fault("miniformer.tasks.masked_lm:_split_windows")
def only_the_start_of_a_long_text_is_read(original):
    """Only the first window of a long text is used."""

    def split_windows(ids, record, tokenizer, seq_len):
        yield next(iter(original(ids, record, tokenizer, seq_len)))

    return split_windows


@fault("miniformer.tasks.common.input_encoding:_truncated_lengths")
def second_text_of_a_pair_is_cut_first(original):
    """The second text of a pair is truncated first, even if it is shorter."""

    def truncated_lengths(first, second, max_length):
        first = min(first, max_length)
        return first, min(second, max_length - first)

    return truncated_lengths


@fault("miniformer.tasks.common.input_encoding:collate_inputs")
def padding_of_inputs_is_read(original):
    """Batches of inputs have no mask."""

    def collate_inputs(examples, random=None):
        batch = original(examples, random)
        batch.pop("attention_mask", None)
        return batch

    return collate_inputs


@fault("miniformer.tasks.seq2seq:Seq2Seq.encode_sources")
def sources_take_the_tokenizer_of_targets(original):
    """The target tokenizer encodes sources in spite of a separate source tokenizer."""

    def encode_sources(self, texts, tokenizer, seq_len):
        separate = tokenizer.separate_source_tokenizer
        tokenizer.separate_source_tokenizer = None
        try:
            return original(self, texts, tokenizer, seq_len)
        finally:
            tokenizer.separate_source_tokenizer = separate

    return encode_sources


# Answers and metrics.


@fault("miniformer.tasks.seq2seq:Seq2Seq.eval_step")
def validation_searches_like_a_test(original):
    """A validation decodes with beams."""
    return lambda self, model, batch: self.test_step(model, batch)


@fault("miniformer.tasks.seq2seq:Seq2Seq.test_step")
def tests_ignore_the_length_penalty(original):
    """A test searches with the usual length penalty."""

    def step(self, model, batch):
        return original(dataclasses.replace(self, length_penalty=1.0), model, batch)

    return step


@fault("miniformer.tasks.common.generated_texts:make_results")
def results_are_in_the_order_of_batches(original):
    """Predictions of records are those of the rows of batches, in their order."""

    def make_results(batch_stats, tokenizer):
        results = original(batch_stats, tokenizer)
        if tokenizer is None:
            return results
        rows = [ids for stats in batch_stats for ids in stats.get("generated", [])]
        return dataclasses.replace(results, predictions=[tokenizer.decode(ids) for ids in rows])

    return make_results


@fault("miniformer.tasks.seq2seq:Seq2Seq.default_generation_config")
def models_ignore_the_length_penalty(original):
    """A trained model's directory has the usual length penalty."""

    def default_generation_config(self, config, tokenizer):
        return dataclasses.replace(original(self, config, tokenizer), length_penalty=1.0)

    return default_generation_config


@fault("miniformer.tasks.common.scoring:perplexity")
def bits_per_byte_count_characters(original):
    """Bits per byte of a file are bits per character."""

    def perplexity(task, model, tokenizer, records, *, stride=None, progress=None):
        result = original(task, model, tokenizer, records, stride=stride, progress=progress)
        texts = [record["text"] for record in records]
        n_bytes, n_characters = (sum(map(len, x)) for x in ([t.encode() for t in texts], texts))
        return {**result, "bits_per_byte": result["bits_per_byte"] * n_bytes / n_characters}

    return perplexity


@fault("miniformer.tasks.regression:Regression.format_outputs")
def predictions_are_standardized(original):
    """Predictions are not denormalized to the units of the data."""

    def format_outputs(self, outputs, inputs):
        return [
            (value - self.target_mean) / self.target_std
            for value in original(self, outputs, inputs)
        ]

    return format_outputs


@fault("miniformer.tasks.embedding:embed_batch")
def vectors_are_those_of_the_first_token(original):
    """Embeddings are the first position, for any pooling."""

    def embed_batch(model, batch):
        from miniformer.tasks.common.input_encoding import model_inputs

        return model.features(**model_inputs(model, batch))[:, 0]

    return embed_batch


@fault("miniformer.tasks.common.text_generation:TextGenerationTask.generate")
def answers_come_in_another_order(original):
    """Answers are in reverse order of the prompts."""

    def generate(self, model, tokenizer, prompts, options, **kwargs):
        return original(self, model, tokenizer, list(prompts)[::-1], options, **kwargs)

    return generate


@fault("miniformer.tasks.common.scoring:_windows")
def window_scores_a_token_again(original):
    """Windows score a token twice."""

    def windows(length, first_scored, max_length, stride):
        spans = original(length, first_scored, max_length, stride)
        for number, (begin, end, first) in enumerate(spans):
            yield begin, end, first - (number > 0)

    return windows


@fault("miniformer.tasks.common.scoring:_label_logprobs")
def every_token_is_the_greedy_one(original):
    """Every answer counts as the greedy one."""

    def label_logprobs(model, features, labels):
        return ((logprob, True) for logprob, _ in original(model, features, labels))

    return label_logprobs


@fault("miniformer.tasks.common.plots:plot_predictions")
def picture_of_values_is_not_written(original):
    """There are no plots."""
    return lambda values, predictions, path: None


@fault("miniformer.tasks.base:mean")
def validation_loss_is_the_mean_of_batches(original):
    """Batches weigh the same, however many labels they have."""

    def mean(batch_stats, name, count):
        means = [float(stats[name]) / float(stats[count]) for stats in batch_stats]
        return sum(means) / len(means)

    return mean


@fault("miniformer.training.tuning.series:detect_series_feature")
def series_ignores_level(original):
    """A series target is chosen by the std of the change alone."""

    def detect_series_feature(records):
        import numpy as np

        change = np.array([r["value"] - np.array(r["input"])[-1] for r in records])
        values = np.array([r["value"] for r in records])
        nearest = int(np.argmin(change.std(0)))
        return nearest if change.std(0)[nearest] < 0.75 * values.std() else None

    return detect_series_feature


@fault("miniformer.training.tuning.series:detect_series_feature")
def series_judged_on_its_own_records(original):
    """A series target is checked on the records that it was chosen from."""

    def detect_series_feature(records):
        sample = list(records)
        sample[4::5] = sample[3:-1:5]
        return original(type(records)(sample, records.schema))

    return detect_series_feature


@fault("miniformer.tasks.common.standardize:standardize")
def features_in_float32(original):
    """Features are rounded to float32 before standardization."""

    def standardize(vectors, means, stds):
        import numpy as np

        return original(vectors.astype(np.float32), means, stds)

    return standardize


@fault("miniformer.tasks.common.standardize:standardize")
def features_as_they_stand(original):
    """Features are not standardized."""

    def standardize(vectors, means, stds):
        import numpy as np

        return vectors.astype(np.float32)

    return standardize


@fault("miniformer.tasks.common.sequence_input:InputTask.predict_outputs")
def long_inputs_are_cut_in_any_case(original):
    """Inputs that are too long are truncated even with truncate=False."""

    def predict_outputs(self, model, tokenizer, inputs, *, truncate=False, **options):
        return original(self, model, tokenizer, inputs, truncate=True, **options)

    return predict_outputs


@fault("miniformer.tasks.common.sequence_input:InputTask.predict_outputs")
def truncate_keeps_the_end_of_inputs(original):
    """Inputs that are too long are truncated at the beginning, not at the end."""

    def predict_outputs(self, model, tokenizer, inputs, *, truncate=False, **options):
        limit = model.config.max_seq_len
        cut = [x[-limit + 1 :] if truncate and len(x) > limit else x for x in inputs]
        return original(self, model, tokenizer, cut, truncate=truncate, **options)

    return predict_outputs


@fault("miniformer.tasks.language_modeling:LanguageModeling.generation_inputs")
def truncate_keeps_the_beginning_of_prompts(original):
    """A prompt that is too long is truncated at its end."""

    def generation_inputs(self, model, tokenizer, prompts, *, truncate=False, max_new_tokens=0):
        length = model.config.max_seq_len - max_new_tokens
        inputs = original(self, model, tokenizer, prompts)
        return [type(x)(x.input_ids[:length]) for x in inputs] if truncate else inputs

    return generation_inputs


@fault("miniformer.tasks.common.text_metrics:compute_text_metrics")
def bleu_exchanges_references(original):
    """Predictions and references are swapped."""

    def compute_text_metrics(predictions, references):
        return original(references, predictions)

    return compute_text_metrics


@fault("miniformer.tasks.common.text_metrics:round_trip")
def references_stay_as_they_are(original):
    """Generated text is compared with targets that the tokenizer cannot represent."""

    def round_trip(tokenizer, texts):
        return list(texts)

    return round_trip


@fault("miniformer.tasks.common.text_metrics:round_trip")
def unknown_words_match(original):
    """A target with unknown words matches a text without them."""

    def round_trip(tokenizer, texts):
        return [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)]

    return round_trip


@fault("miniformer.tasks.seq2seq:Seq2Seq.sample_prompts")
def samples_need_sources(original):
    """Sample prompts are of the field `source` in every task."""

    def sample_prompts(self, records):
        return [next(iter(records))["source"]]

    return sample_prompts


@fault("miniformer.tasks.regression:Regression.fit")
def fit_overwrites_what_was_given(original):
    """The training data overrides an option of the user."""

    def fit(self, records):
        import dataclasses

        return original(dataclasses.replace(self, target_mean=None), records)

    return fit


@fault("miniformer.tasks.common.input_encoding:check_max_seq_len")
def short_models_have_no_room_for_a_text(original):
    """A max_seq_len below the number of special tokens is accepted; training fails later."""
    return lambda config, min_length, inputs: None


@fault("miniformer.checkpoint.artifacts:stored_settings")
def stored_pairs_lose_their_marks(original):
    """Null in a stored task means that tokens of pairs are not marked."""

    def stored_settings(settings):
        current = original(settings)
        automatic = settings.get("shared_token_types", settings.get("mark_shared")) is None
        return {**current, "shared_token_types": False} if automatic else current

    return stored_settings


# Multi-label classification and unequal classes.


@fault("miniformer.tasks.multilabel_classification:MultiLabelClassification._cross_entropy")
def multilabel_loss_counts_records(original):
    """The loss is divided by the number of records, not of decisions."""

    def cross_entropy(self, logits, labels, label_smoothing=0.0):
        loss, _ = original(self, logits, labels, label_smoothing)
        return loss, loss.new_tensor(len(labels))

    return cross_entropy


@fault("miniformer.tasks.multilabel_classification:MultiLabelClassification.balanced_weights")
def multilabel_weights_are_of_negatives(original):
    """Balanced weights are positive records per negative one."""
    return lambda self, counts, total: [count / max(1, total - count) for count in counts]


@fault("miniformer.tasks.multilabel_classification:MultiLabelClassification._check_labels")
def unknown_label_of_several_passes(original):
    """Labels of a list are not compared with the classes."""

    def check_labels(self, value):
        return original(
            dataclasses.replace(
                self, classes=None, class_weights=None, class_counts=None, thresholds=None
            ),
            value,
        )

    return check_labels


@fault("miniformer.training.lit_module:MiniFormerLitModule.on_test_epoch_end")
def thresholds_are_fitted_to_the_test(original):
    """The test decides the thresholds of its metrics."""

    def on_test_epoch_end(self):
        self.loss_module.task = dataclasses.replace(self.task, thresholds=None).fit_to_validation(
            self.validation_stats
        )
        original(self)

    return on_test_epoch_end


@fault("miniformer.training.report.artifacts:RunArtifacts.fit_task_to_validation")
def thresholds_are_not_saved(original):
    """A saved model has the task as it was before validation."""
    return lambda self, stats, name: None


@fault("miniformer.tasks.common.thresholds:best_threshold")
def best_threshold_is_a_half(original):
    """The threshold does not depend on the data."""
    return lambda probs, labels: 0.5


@fault("miniformer.tasks.common.thresholds:f1_along")
def f1_of_an_absent_label_is_one(original):
    """A label without positives and predictions counts as solved."""

    def f1(predictions, labels, axis):
        empty = ~(predictions.any(axis) | labels.any(axis))
        return original(predictions, labels, axis) + empty

    return f1


@fault("miniformer.tasks.common.thresholds:best_thresholds")
def rare_labels_have_their_own_threshold(original):
    """A label with a few validation records gets the threshold that fits these best."""

    def best_thresholds(probs, labels):
        import miniformer.tasks.common.thresholds as module

        result = original(probs, labels)
        for label in labels.any(0).nonzero()[0]:
            result[label] = module.best_threshold(probs[:, label], labels[:, label])
        return result

    return best_thresholds


@fault("miniformer.tasks.common.label_task:LabelTask.batcher")
def balanced_sampling_is_off(original):
    """Training draws each record once."""

    def batcher(self, tokenizer, **options):
        return original(dataclasses.replace(self, balanced_sampling=0.0), tokenizer, **options)

    return batcher


@fault("miniformer.tasks.common.label_task:LabelTask.batcher")
def validation_is_resampled(original):
    """Rare classes are repeated in validation data, too."""

    def batcher(self, tokenizer, **options):
        import numpy as np

        result = original(self, tokenizer, **{**options, "training": True})
        plan = result.plan_batches
        result.plan_batches = lambda chunk, rng: plan(chunk, rng or np.random.default_rng(0))
        return result

    return batcher


@fault("miniformer.tasks.common.label_task:LabelTask.record_warnings")
def single_labels_are_not_announced(original):
    """Labels that occur once pass without a warning."""
    return lambda self, records: iter(())


@fault("miniformer.tasks.ordinal_regression:quadratic_kappa")
def kappa_weights_are_linear(original):
    """Kappa has weights that grow with the distance, not with its square."""

    def kappa(counts, predictions, labels):
        import numpy as np
        from sklearn.metrics import cohen_kappa_score

        return np.array(
            [
                cohen_kappa_score(
                    np.repeat(labels, row.astype(int)),
                    np.repeat(predictions, row.astype(int)),
                    weights="linear",
                )
                for row in counts
            ]
        )

    return kappa


@fault("miniformer.tasks.ordinal_regression:OrdinalRegression.decide")
def ordinal_prediction_is_the_mode(original):
    """The predicted class is the most probable one."""
    return lambda self, logits: logits.argmax(-1)


@fault("miniformer.model.head:Head.thresholds")
def thresholds_may_cross(original):
    """Thresholds are free parameters."""
    return lambda self: self.bias


@fault("miniformer.tasks.common.value_kinds:ValueKind.from_numbers")
def outputs_are_in_the_order_of_the_record(original):
    """Names of several values are sorted, but the outputs are not."""

    def from_numbers(self, numbers):
        value = original(self, numbers)
        return dict(zip(sorted(value), numbers, strict=True)) if isinstance(value, dict) else value

    return from_numbers


@fault("miniformer.tasks.common.value_metrics:average_outputs")
def metrics_are_of_the_first_output(original):
    """Metrics of several outputs are those of the first."""
    return lambda names, metrics_of: original(names, lambda index: metrics_of(0))


@fault("miniformer.tasks.regression:Regression._check_value")
def values_of_other_lengths_pass(original):
    """A value of fewer numbers than the others is not refused."""

    def check_value(self, value, *, kind_is_known=False):
        if isinstance(value, list):
            return None
        return original(self, value, kind_is_known=kind_is_known)

    return check_value


@fault("miniformer.tasks.language_modeling:LanguageModeling.record_warnings")
def a_column_of_labels_is_ignored_in_silence(original):
    """A language model is trained on classified texts without a hint."""
    return lambda self, records: iter(())


@fault("miniformer.tasks.seq2seq:group_copies")
def predict_gives_one_of_several_targets(original):
    """Of several targets of a source, `predict` gives the first."""
    return lambda texts, options: texts[:: options.num_return_sequences]
