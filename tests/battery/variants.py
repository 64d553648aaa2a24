"""The model configurations that every test of the battery runs on.

Together they hold each pair of values of any two options at least once (`test_variants.py` checks
it), which is where options break each other; the full product would be 6,048.
"""

import itertools

OPTIONS = {
    "causal": [True, False],
    "pre_norm": [True, False],
    "norm": ["layernorm", "rmsnorm"],
    "activation": ["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu", "reglu"],
    "n_kv_heads": [None, 1, 2],
    "position": [("rotary", 1.0), ("rotary", 0.5), ("none", 1.0)],
    "bias": [True, False],
    "head": ["tied", "untied", "output_dim"],
    "head_dim": [None, 6],
}


def _pairs(row):
    return set(itertools.combinations(sorted(row.items(), key=str), 2))


def all_pairs():
    """Every (option, value), (option, value) that can occur together."""
    return {
        pair
        for one, other in itertools.combinations(OPTIONS, 2)
        for first in OPTIONS[one]
        for second in OPTIONS[other]
        for pair in _pairs({one: first, other: second})
    }


def pairwise():
    """A small set of rows that covers all pairs: each time the row that covers most of what is
    left."""
    product = [
        dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())
    ]
    covers = [(_pairs(row), row) for row in product]
    left, rows = all_pairs(), []
    while left:
        pairs, row = max(covers, key=lambda item: len(item[0] & left))
        rows.append(row)
        left -= pairs
    return rows


def fields(row):
    """A row as changes to the tiny config."""
    changes = dict(row)
    changes["position"], changes["rotary_pct"] = changes["position"]
    head = changes.pop("head")
    changes["tie_embeddings"] = head == "tied"
    changes["output_dim"] = 5 if head == "output_dim" else None
    return changes


def name(row):
    return "-".join(str(value) for value in row.values()).replace(" ", "")


VARIANTS = pairwise()
