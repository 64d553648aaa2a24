"""Faults in the copy noise of seq2seq."""

import numpy as np

from tests.faults import fault


@fault("miniformer.tasks.common.copy_noise:exchange_piece")
def copy_noise_changes_the_source_alone(original):
    """The target keeps the old piece."""
    return lambda example, donor, rng: {
        **original(example, donor, rng), "labels": example["labels"],
    }  # fmt: skip


@fault("miniformer.tasks.common.copy_noise:with_copy_noise")
def copy_noise_changes_every_example(original):
    """The probability is 1."""
    return lambda collate_fn, probability, **options: original(collate_fn, 1.0, **options)


@fault("miniformer.tasks.common.copy_noise:find_longest_shared")
def copy_noise_changes_short_parts(original):
    """Parts of two tokens count as longer ones."""

    def find_longest_shared(source, target):
        start, target_start, length = original(source, target)
        return np.array([start, target_start, max(length, 3)], dtype=np.int32)

    return find_longest_shared


@fault("miniformer.tasks.seq2seq:Seq2Seq.collate_fn")
def copy_noise_reaches_evaluation(original):
    """Validation batches are changed, too."""
    return lambda self, tokenizer, *, seq_len, training: original(
        self, tokenizer, seq_len=seq_len, training=True
    )


@fault("miniformer.training.tuning.copy_noise:resolve_copy_noise")
def copy_noise_is_never_chosen(original):
    """The data does not determine the copy noise."""
    return lambda task, tokenizer, records: (task, [])


@fault("miniformer.training.tuning.copy_noise:_copies")
def copy_noise_is_always_chosen(original):
    """Every target counts as a copy."""
    return lambda source, target: True
