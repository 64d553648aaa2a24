"""What the battery proves, as a table: `python -m tests.battery.matrix` writes docs/matrix.md.

It counts for each value of each option the variants that hold it and that each test runs on. The
tests run with all others; `tests/contract/test_matrix.py` sees that the page is what they hold.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.battery.variants import EACH_VALUE, FOR_FLEX, NOT_SEQ2SEQ, OPTIONS, VARIANTS, name

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "matrix.md"
COLUMNS = {  # heading -> beginning of a test's name
    "logits": "test_logits_are",
    "gradients": "test_gradients_are_those",
    "cached": "test_cached_decoding",
    "batch = singles": "test_a_batch_gives",
    "no leak": "test_no_later_token",
    "bfloat16": "test_bfloat16",
    "checkpointed": "test_checkpointed_layers",
    "saved": "test_saving",
    "sizes": "test_size_is",
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
| `causal`, `input_dim`, `output_dim`, `token_types`, `parallel_residual` in a `Seq2SeqTransformer` | ... is for a Transformer |
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
# What is proven

The battery (`tests/battery`) runs on {len(VARIANTS)} variants of the models. They are chosen so
that any two values of two options meet in at least one of them; the full product of the options
has billions. A number counts the variants with that value that a test runs on; `-` marks what
does not concern them (an encoder has no cache). This page is written by
`python -m tests.battery.matrix`.

- **logits**, **gradients**: equal to the plain reference (`tests/reference`, loops in float64), without
  padding, with padding on the left or right, and packed; through the backends `auto` (`sdpa`), `plain`,
  `matmul` where it can; logits also through `flex`, on {len(FOR_FLEX)} of the variants, which hold each position, each
  way to share heads and each pair of a window and scores. `varlen` is held against loops with its GPU kernel written
  out (`tests/unit/test_backends.py`).
- **cached**: tokens one by one and in chunks of several sizes, with and without padding, for the caches
  `full`, `window` and, within its tolerance, `int8`, give what one full pass gives; through `auto`, `plain` and
  `matmul` where it can (`flex` in `tests/unit/test_cache.py`).
- **batch = singles**: a padded row gives what it gives alone. **no leak**: no later token moves an
  earlier logit. **sizes** computed from the config are those of the model.
- What does not depend on how options meet runs on {len(EACH_VALUE)} of the variants, which hold each value and each kind
  of layer in each architecture. **bfloat16**, whole models and autocast: logits and gradients are as near to
  float32 as rounding errors by chance leave them. **checkpointed** layers give the same gradients, bit
  for bit, and keep less. **saved** models load as they were.
- Rotary scaling at real widths (heads of 64, 2,048 positions and more) and windows, caches and limits at their
  boundaries are in `test_real_widths.py` and `test_boundaries.py`.

{table(counts)}

Not for two stacks: {excluded}.

## What is refused

{REFUSED}"""


if __name__ == "__main__":
    DOCUMENT.write_text(document(cases()), encoding="utf-8")
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
