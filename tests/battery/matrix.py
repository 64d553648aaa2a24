"""Table of the battery's coverage: `python -m tests.battery.matrix` writes docs/matrix.md.

For each value of each option it counts the variants with that value that each test runs on.
`tests/contract/test_matrix.py` compares the page with the tests.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.battery.variants import EACH_VALUE, FOR_FLEX, NOT_SEQ2SEQ, OPTIONS, VARIANTS, name

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "matrix.md"
COLUMNS = {  # heading -> beginning of a test's name
    "logits": "test_logits_match",
    "gradients": "test_gradients_match",
    "cached": "test_cached_decoding",
    "batch = singles": "test_batch_matches",
    "no leak": "test_no_later_token",
    "bfloat16": "test_bfloat16",
    "checkpointed": "test_checkpointed_layers",
    "saved": "test_saving",
    "sizes": "test_size_matches",
}
REFUSED = """\
| combination | message |
|---|---|
| `flex` with gradients on a CPU | attention backend 'flex': flex_attention has no backward pass on a CPU |
| `flex` or `varlen` in cross-attention | attention backend 'flex': only self-attention is supported |
| `matmul` with a soft-cap, sinks or a position bias | attention backend 'matmul': softcap of the scores is not supported |
| `varlen` without a GPU | attention backend 'varlen': FlashAttention needs a CUDA device |
| `varlen` in float32 | attention backend 'varlen': FlashAttention needs float16 or bfloat16 |
| `varlen` with `head_dim` > 256, on GPUs `flex` with `head_dim` < 16 | ...: FlashAttention needs head_dim <= 256 |
| `varlen` with a soft-cap, sinks or a position bias | ...: softcap of the scores is not supported |
| `varlen` in cached decoding | ...: only self-attention without a cache is supported |
| `sdpa` with a soft-cap | attention backend 'sdpa': torch's fused attention has no soft-cap |
| a cache for an encoder | causal must be true for cached decoding, not false |
| a cache and `segment_ids` | a cache row holds one sequence |
| trimming a full sliding-window cache | make it with kind='full' to trim it |
| `parallel_residual` with other norms than `pre` | parallel_residual needs norms before the sub-layers |
| `window_pattern`, `rotary_base_local` without a window | ... needs sliding_window |
| `causal`, `output_dim`, `token_types`, `parallel_residual`, `wide_head` in a `Seq2SeqTransformer` | ... is for a Transformer |
"""


def cases():
    """(test, variant) -> how many cases of it there are."""
    command = ["-m", "pytest", "tests/battery", "--collect-only", "-q", "-o", "addopts="]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"the battery cannot be collected:\n{done.stdout}{done.stderr}")
    counts = Counter()
    for line in done.stdout.splitlines():
        test, _, parameters = line.rpartition("::")[2].partition("[")
        for row in VARIANTS:
            if name(row) in parameters:
                counts[test, name(row)] += 1
    return counts


def table(counts):
    lines = [
        "| option | value | variants | " + " | ".join(COLUMNS) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for option, values in OPTIONS.items():
        for value in values:
            rows = [row for row in VARIANTS if row[option] == value]
            cells = []
            for start in COLUMNS.values():
                held = sum(
                    any(test.startswith(start) and variant == name(row) for test, variant in counts)
                    for row in rows
                )
                cells.append(str(held) if held else "-")
            lines.append(f"| {option} | {value} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def document(counts):
    excluded = ", ".join(f"{option} {value}" for option, value in sorted(NOT_SEQ2SEQ))
    return f"""\
# Tested combinations

The battery (`tests/battery`) runs on {len(VARIANTS)} variants of the models. Each pair of values of
two options is in at least one variant; the full product of the options has billions. A number
counts the variants with that value that a test runs on; `-` marks values that the test does not
apply to (an encoder has no cache). `python -m tests.battery.matrix` writes this page.

- **logits**, **gradients**: equal to the reference (`tests/reference`, loops in float64), without
  padding, with left or right padding, and packed; with the backends `auto` (`sdpa`), `plain` and, if supported,
  `matmul`; logits also with `flex`, on {len(FOR_FLEX)} of the variants, which cover each position encoding, each
  grouping of heads and each pair of a window and score options. `varlen` is compared with loops, with a Python
  version of its GPU kernel (`tests/unit/model/test_attention_backends.py`).
- **cached**: decoding token by token and in chunks of several sizes, with and without padding, with the caches
  `full`, `window` and (within its tolerance) `int8`, gives the logits of one full pass; with `auto`, `plain` and, if
  supported, `matmul` (`flex` in `tests/unit/model/cache/test_kv_cache.py`).
- **batch = singles**: a padded row gives the same logits as alone. **no leak**: no later token changes an
  earlier logit. **sizes** computed from the config are those of the model.
- Tests that do not depend on pairs of options run on {len(EACH_VALUE)} of the variants, which cover each value and each
  kind of layer in each architecture. **bfloat16** (models and autocast): logits and gradients differ from
  float32 by no more than random rounding errors. **checkpointed** layers give bit-identical gradients and save
  less memory. **saved** models load unchanged.
- Rotary scaling at real widths (heads of 64, 2,048 positions and more) is in `test_real_widths.py`; windows, caches
  and limits at their boundaries are in `test_boundaries.py`.

{table(counts)}

Not for sequence-to-sequence models: {excluded}.

## Unsupported combinations

{REFUSED}"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(cases()), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
