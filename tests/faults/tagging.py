"""Faults in `miniformer.tasks.tagging` and token classification."""

import dataclasses

from tests.faults import fault


@fault("miniformer.tasks.tagging.schemes:find_spans")
def spans_of_one_type_are_merged(original):
    """Neighboring spans of one type count as one."""

    def find_spans(tags, scheme, *, strict=False):
        merged = []
        for span in original(tags, scheme, strict=strict):
            if merged and (merged[-1].type, merged[-1].end) == (span.type, span.start):
                merged[-1] = merged[-1]._replace(end=span.end)
            else:
                merged.append(span)
        return merged

    return find_spans


@fault("miniformer.tasks.tagging.schemes:_strict_spans")
def strict_spans_have_no_end(original):
    """Strict mode takes spans without their last tag."""
    return lambda tags, scheme: original(tags, "iob2")


@fault("miniformer.tasks.tagging.schemes:is_valid_transition")
def inside_tag_may_follow_another_type(original):
    """Any tag may follow any other."""
    return lambda scheme, previous, current: True


@fault("miniformer.tasks.tagging.schemes:detect_scheme")
def iob1_is_read_as_iob2(original):
    """Tags of IOB1 are taken for those of IOB2, whose names are the same."""

    def detect_scheme(transitions):
        detected = original(transitions)
        return "iob2" if detected == "iob1" else detected

    return detect_scheme


@fault("miniformer.tasks.tagging.schemes:complete_tags")
def rare_inside_tag_is_unknown(original):
    """The classes are the tags that occur, so that an I- of a type may be missing."""
    return lambda tags, scheme: sorted(tags)


@fault("miniformer.tasks.tagging.span_metrics:find_spans")
def spans_with_another_end_are_correct(original):
    """A span counts as correct if its start is."""

    def find_spans(tags, scheme, *, strict=False):
        spans = original(tags, scheme, strict=strict)
        return [span._replace(end=span.start + 1) for span in spans]

    return find_spans


@fault("miniformer.tasks.tagging.viterbi:decode")
def viterbi_ignores_the_end(original):
    """The last tag may be one that a span cannot end with."""

    def decode(logprobs, lengths, constraint, *, is_start=None, is_end=None):
        import torch

        no_end = torch.zeros(len(logprobs), dtype=torch.bool)
        return original(logprobs, lengths, constraint, is_start=is_start, is_end=no_end)

    return decode


@fault("miniformer.tasks.tagging.viterbi:decode")
def viterbi_is_greedy(original):
    """Each tag is the most probable one."""
    return lambda logprobs, lengths, constraint, **options: logprobs.argmax(-1)


@fault("miniformer.tasks.tagging.word_encoding:_distinguishes_spaces")
def words_are_encoded_without_their_space(original):
    """Words are encoded as at the start of a text."""
    return lambda tokenizer: False


@fault("miniformer.tasks.tagging.word_encoding:encode_words")
def words_without_tokens_vanish(original):
    """A word without tokens has none in the inputs, either."""

    def encode_words(tokens, tokenizer):
        encoded = original(tokens, tokenizer)
        ids = {word: tokenizer.encode(word) for word in encoded}
        return {word: x if ids[word] else x._replace(ids=[]) for word, x in encoded.items()}

    return encode_words


@fault("miniformer.tasks.tagging.word_encoding:plan_windows")
def windows_predict_words_twice(original):
    """A word of two windows is predicted in both."""

    def plan_windows(lengths, max_length):
        windows = original(lengths, max_length)
        return [window._replace(first=window.start, last=window.end) for window in windows]

    return plan_windows


@fault("miniformer.tasks.tagging.word_encoding:pooling_weights")
def word_vectors_include_the_next_token(original):
    """The tokens of a word include the first one of the next word."""

    def pooling_weights(starts, lengths, size, pooling):
        return original(starts, lengths + (lengths > 0), size, pooling)

    return pooling_weights


@fault("miniformer.tasks.token_classification:model_inputs")
def context_of_padding_changes_tags(original):
    """Padding is attended to."""
    return lambda model, batch: {**original(model, batch), "attention_mask": None}


@fault("miniformer.tasks.token_classification:TokenClassification._cross_entropy")
def smoothed_validation_of_tags(original):
    """Label smoothing stays on in validation."""
    return lambda self, logits, labels, label_smoothing=0.0: original(
        self, logits, labels, self.label_smoothing
    )


@fault("miniformer.tasks.token_classification:TokenClassification._word_stats")
def validation_ignores_the_scheme(original):
    """Tags are the most probable ones, valid or not."""

    def word_stats(self, logits, batch):
        plain = dataclasses.replace(self, valid_predictions=False)
        return original(plain, logits, batch)

    return word_stats


@fault("miniformer.tasks.tagging.tagged_words:TaggedWords.from_stats")
def windows_are_sequences_of_their_own(original):
    """Spans end where a window does."""

    def from_stats(stats, classes, scheme=None):
        windows = [
            {**batch, "word_records": 1000 * batch["word_records"] + batch["positions"] // 8}
            for batch in stats
        ]
        return original(windows, classes, scheme)

    return staticmethod(from_stats)


@fault("miniformer.tasks.token_classification:with_bpe_dropout")
def dropped_merges_move_words(original):
    """Words keep the positions that they had before BPE dropout."""

    def with_bpe_dropout(collate_fn, dropout, *, merges, aligned_columns=(), max_length):
        inner = original(collate_fn, dropout, merges=merges, max_length=max_length)

        def collate_moved(examples, rng):
            batch = inner(examples, rng)
            plain = collate_fn(examples)
            return {**batch, **{x: plain[x] for x in ("word_starts", "word_lengths")}}

        return collate_moved

    return with_bpe_dropout


@fault("miniformer.data.reading.schema:check_tags")
def unequal_tags_pass(original):
    """A record may have fewer tags than tokens, or more."""
    return lambda value, num_tokens: original(value, len(value))


@fault("miniformer.tasks.tagging.tag_task:TagTask._check_tags")
def tags_that_training_never_saw_pass(original):
    """Validation tags are not compared with those of training."""

    def check_tags(self, record):
        unfitted = dataclasses.replace(self, classes=None, class_counts=None)
        return original(unfitted, record)

    return check_tags


@fault("miniformer.tasks.tagging.tag_task:TagTask.record_warnings")
def rare_tags_are_not_announced(original):
    """Tags that occur once are trained without a word."""
    return lambda self, records: iter(())


@fault("miniformer.tasks.tagging.results:make_results")
def record_is_correct_with_one_right_tag(original):
    """A record counts as correct if any of its tags is."""

    def make_results(tagged, span_types, span_counts):
        results = original(tagged, span_types, span_counts)
        return dataclasses.replace(results, correct=results.statistics["tags"][:, :, 0].sum(1) > 0)

    return make_results


@fault("miniformer.tasks.tagging.answers:is_single_input")
def sentences_are_tagged_as_tokens(original):
    """Several texts are taken as the tokens of one."""

    def is_single_input(value):
        strings = [item.replace(" ", "_") if isinstance(item, str) else item for item in value]
        return original(value if isinstance(value, str) else strings)

    return is_single_input


@fault("miniformer.tasks.tagging.answers:make_answer")
def entities_end_with_their_last_token(original):
    """The end of an entity is that of its last token, not exclusive."""

    def make_answer(tokens, tags, scores, *, scheme, strict):
        answer = original(tokens, tags, scores, scheme=scheme, strict=strict)
        for entity in answer.get("entities", []):
            entity["end"] -= 1
        return answer

    return make_answer


@fault("miniformer.model.wide_head.chain:log_marginals")
def last_word_has_a_following_one(original):
    """Padding after a sequence changes its marginals."""

    def log_marginals(scores, mask, transitions, start):
        return original(scores, mask | True, transitions, start)

    return log_marginals


@fault("miniformer.model.wide_head.word_context:word_feature_keys")
def neighbors_have_no_side(original):
    """Features of the words before and after a word are the same."""

    def word_feature_keys(hashes):
        keys, own = original(hashes), hashes.shape[-1]
        neighbors = keys[..., own:].sort(-1).values
        mirrored = original(hashes.flip(1)).flip(1)[..., own:].sort(-1).values
        keys[..., own:] = neighbors + mirrored
        return keys

    return word_feature_keys


@fault("miniformer.training.tuning.wide_head.chain_loss:Chain.transition_counts")
def transitions_are_free(original):
    """The loss does not count the transitions of the labels."""
    return lambda self, outputs: original(self, outputs) * 0


@fault("miniformer.tasks.tagging.word_features:_features")
def affixes_have_no_length(original):
    """Only the first character is a prefix."""

    def features(word):
        for column, feature in original(word):
            yield column, feature[:1] if column in (5, 7, 9, 11, 13) else feature

    return features


@fault("miniformer.tasks.tagging.span_metrics:select_outside_bias")
def outside_bias_follows_chance(original):
    """The bias with the highest F1 is selected, however small the gain."""

    def select_outside_bias(counts):
        from miniformer.tasks.tagging import span_metrics

        best = span_metrics.precision_recall_f1(counts.sum(1))[2].argmax()
        return span_metrics.OUTSIDE_BIASES[int(best)]

    return select_outside_bias


@fault("miniformer.tasks.tagging.predictions:predict_tags")
def every_outside_bias_is_the_first(original):
    """All biases are compared by the predictions of the first."""

    def predict_tags(logprobs, batch, classes, constraint, outside_biases):
        biases = [outside_biases[0]] * len(outside_biases)
        return original(logprobs, batch, classes, constraint, biases)

    return predict_tags


@fault("miniformer.training.tuning.wide_head.chain:ChainProblem.solve")
def chain_has_no_penalty(original):
    """The fit of tags has almost no L2 penalty."""

    def solve(self, strength, start, iterations=60):
        return original(self, 1e6 * strength, start, iterations)

    return solve
