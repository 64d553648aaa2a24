"""The model configurations that every test of the battery runs on.

Together they cover each pair of values of two options (`test_variants.py` checks it), since pairs
of options cause most faults; the full product has billions. `EACH_VALUE` is a subset that covers
each value, and each kind of layer in each architecture, for tests that do not depend on pairs.
"""

import itertools
import random

LLAMA3 = {"type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_seq_len": 8}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_seq_len": 16, "beta_fast": 4.0}
DYNAMIC = {"type": "dynamic", "factor": 2.0, "original_max_seq_len": 4}  # below most test lengths
LONG = {"type": "longrope", "factor": 4.0, "original_max_seq_len": 6,  # within the tests' lengths
        "short_factors": [1.0, 1.5, 2.0], "long_factors": [2.0, 3.0, 9.0]}  # fmt: skip
# option -> name of a value -> the fields it sets
OPTIONS = {
    "architecture": {"encoder": {}, "causal": {"causal": True}, "seq2seq": {}},
    "layer": {
        "pre": {},
        "parallel": {"parallel_residual": True},
        "post": {"pre_norm": False},
        "both": {"norm_placement": "both"},
        "output": {"norm_placement": "output"},
        "nofirst": {"first_attention_norm": False},
    },
    "norm": {name: {"norm": name} for name in ("layernorm", "rmsnorm", "zero_centered_rmsnorm")},
    "activation": {
        name: {"activation": name}
        for name in ("gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu", "geglu_tanh", "reglu")
    },
    "heads": {"mha": {}, "mqa": {"n_kv_heads": 1}, "gqa": {"n_kv_heads": 2}},
    "width": {"even": {}, "wide": {"head_dim": 6}},
    "position": {
        "rotary": {},
        "partial": {"rotary_pct": 0.5, "rotary_base": 100.0},
        "linear": {"rotary_scaling": {"type": "linear", "factor": 2.0}},
        "dynamic": {"rotary_scaling": DYNAMIC, "rotary_base": 50.0},
        "llama3": {"rotary_scaling": LLAMA3, "rotary_base": 50.0},
        "yarn": {"rotary_scaling": YARN, "rotary_base": 50.0},
        "longrope": {  # one pair more or less, as the head is wide
            "head_dim": 6,
            "rotary_scaling": LONG,
        },
        "localbase": {"rotary_base_local": 10.0},
        "learned": {"position": "learned"},
        "sinusoidal": {"position": "sinusoidal"},
        "fairseq": {"position": "sinusoidal_fairseq"},
        "alibi": {"position": "alibi"},
        "t5_relative": {
            "position": "t5_relative",
            "relative_buckets": 8,
            "relative_max_distance": 7,
        },
        "none": {"position": "none"},
    },
    "bias": {
        "bias": {},
        "nobias": {"bias": False},
        "innerbias": {"bias": False, "qkv_bias": True, "feed_forward_bias": True},
        "attnbias": {"bias": False, "attention_bias": True, "norm_bias": True},
    },
    "qknorm": {"noqk": {}, "qkhead": {"qk_norm": "head"}, "qkproj": {"qk_norm": "projection"}},
    "window": {
        "nowindow": {},
        "window": {"sliding_window": 3},
        "pattern": {"sliding_window": 4, "window_pattern": "LG"},
    },
    "scores": {
        "scores": {},
        "softcap": {"logit_softcap": 2.0},
        "sinks": {"attention_sinks": True},
        "capsinks": {"logit_softcap": 2.0, "attention_sinks": True},
        "scale": {"attention_scale": 0.3},
    },
    "embedding": {
        "embedding": {},
        "embnorm": {"embedding_norm": True},
        "scaled": {"embedding_scale": 1.7},
        "types": {"token_types": 3, "embedding_norm": True},
        "two": {"source_vocab_size": 41},  # one for sources, one for targets
    },
    "head": {
        "tied": {},
        "untied": {"tie_embeddings": False},
        "outputdim": {"output_dim": 5},
        "pooler": {"output_dim": 5, "head": "dense_tanh"},
        "relu": {"output_dim": 5, "head": "dense_relu", "output_bias": False},
        "mlm": {"head": "masked_lm", "head_bias": True, "head_activation": "silu"},
        "capped": {"final_softcap": 3.0, "logit_scale": 0.25},
        "biased": {"tie_embeddings": False, "head_bias": True},
    },
}
# Options that a Seq2SeqTransformer does not support.
NOT_SEQ2SEQ = {
    ("layer", "parallel"), ("embedding", "types"),
    ("head", "outputdim"), ("head", "pooler"), ("head", "relu"),
}  # fmt: skip
# Options of models without a source.
ONLY_ONE_STACK = {*NOT_SEQ2SEQ, ("architecture", "encoder"), ("architecture", "causal")}


def allowed(first, second):
    """True if two (option, value) can occur together."""
    pair = {first, second}
    if ("architecture", "seq2seq") in pair and pair & NOT_SEQ2SEQ:
        return False
    if ("embedding", "two") in pair and pair & ONLY_ONE_STACK:
        return False
    return not {("position", "localbase"), ("window", "nowindow")} <= pair


def all_pairs():
    """Every two (option, value) that can occur together."""
    return {
        frozenset(((left, first), (right, second)))
        for left, right in itertools.combinations(OPTIONS, 2)
        for first in OPTIONS[left]
        for second in OPTIONS[right]
        if allowed((left, first), (right, second))
    }


def pairs_of(row):
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def pairwise():
    """A small set of rows that covers all pairs: each row starts with an uncovered pair, and takes
    the value of each other option that covers most pairs."""
    draw = random.Random(0)
    left, rows = all_pairs(), []
    while left:
        row = dict(min(left, key=lambda pair: sorted(pair)))
        for option in draw.sample(list(OPTIONS), len(OPTIONS)):
            if option in row:
                continue
            possible = [
                value
                for value in OPTIONS[option]
                if all(allowed((option, value), item) for item in row.items())
            ]
            draw.shuffle(possible)

            def gain(value, option=option, row=row, left=left):
                new = (option, value)
                return sum(frozenset((new, item)) in left for item in row.items())

            row[option] = max(possible, key=gain)
        rows.append({option: row[option] for option in OPTIONS})
        left -= pairs_of(row)
    return rows


def held(row):
    """Values of a row, and its kind of layer with its architecture."""
    return {*row.items(), (row["architecture"], row["layer"])}


def masked(row):
    """Values of a row that matter to flex_attention: scores, mask and their combination."""
    own = {item for item in row.items() if item[0] in ("architecture", "heads", "position")}
    return {*own, tuple(row[option] for option in ("architecture", "window", "scores"))}


def few(rows, held=held):
    """A small subset of the rows that covers what all rows cover, by a greedy search."""
    left, chosen = set().union(*map(held, rows)), []
    while left:
        chosen.append(max(rows, key=lambda row: len(left & held(row))))
        left -= held(chosen[-1])
    return chosen


def fields(row):
    """A row as changes to the tiny config."""
    changes = {}
    for option, value in row.items():
        changes |= OPTIONS[option][value]
    if row["architecture"] == "seq2seq":
        changes["n_decoder_layers"] = 2
    return changes


def name(row):
    return "-".join(row.values())


VARIANTS = pairwise()
EACH_VALUE = few(VARIANTS)
# flex_attention is slow where it is not compiled, and has no cross-attention.
FOR_FLEX = few([row for row in VARIANTS if row["architecture"] != "seq2seq"], masked)
