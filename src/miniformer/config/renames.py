"""Former names of settings. They are accepted with a `RenamedWarning`; files have the new names.

Each table maps a former name to the current one. `StrictConfig.current_names` applies them, and
those of registered parts, which `miniformer.registry` has.
"""

from __future__ import annotations

TRAIN_FIELDS = {
    "memory": "memory_limit",
    "size": "model_size",
    "val_interval": "val_check_interval",
    "warm_start": "pretrain",
    "warmup_share": "warmup_ratio",
}
GENERATION_FIELDS = {
    "bad_ids": "bad_words_ids",
    "beam_groups": "num_beam_groups",
    "length_norm": "length_normalization",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "slide": "context_shift",
    "stop": "stop_strings",
    "stop_ids": "stop_token_ids",
    "weights": "weight_dtype",
}
_INPUT_TASK_OPTIONS = {"mark_shared": "shared_token_types"}
# By the registered name of the task.
TASK_OPTIONS = {
    "classification": _INPUT_TASK_OPTIONS,
    "embedding": _INPUT_TASK_OPTIONS,
    "language_modeling": {"prompt_begins_document": "prepend_bos"},
    "masked_lm": _INPUT_TASK_OPTIONS,
    "regression": {
        **_INPUT_TASK_OPTIONS,
        "mean": "target_mean",
        "next_of": "target_delta_of",
        "spread": "target_std",
        "still": "scale_epsilon",
    },
    "seq2seq": {"generated": "eval_generate_samples"},
}
