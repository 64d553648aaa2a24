"""Seeded faults: plausible wrong code, each of which a test must catch. `python -m tests.faults`

A fault replaces a piece of the source in a copy of the package; its tests are then run against that
copy and must fail. A fault that no test notices, or that fits the source no more, ends this with
exit code 1.
"""

import concurrent.futures
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BATTERY = "tests/battery/test_battery.py"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, where, how, and the tests that must notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = [
    Fault(
        "rotary pairs neighbours with the angles of halves", "model/position.py",
        "turned.roll(dim // 2, -1)", "turned.roll(1, -1)",
        "tests/unit/test_parts.py -k rotation",
    ),
    Fault(
        "rotary turns values of the whole head by the partial share", "model/position.py",
        "self.base ** (-pair / self.dim)", "self.base ** (-pair / (2 * self.dim))",
        f"{BATTERY} -k plain_reference",
    ),
    Fault(
        "causal mask lets the next token through", "model/masks.py",
        ".tril(keys - queries)", ".tril(keys - queries + 1)",
        "tests/unit/test_masks.py",
    ),
    Fault(
        "padding is attended to", "model/masks.py",
        "allowed = attention_mask[:, None, :].expand(-1, length, -1)",
        "allowed = torch.ones_like(attention_mask[:, None, :].expand(-1, length, -1))",
        f"{BATTERY} -k logits_are",
    ),
    Fault(
        "packed documents see each other", "model/masks.py",
        "segment_ids[:, :, None] == segment_ids[:, None, :]",
        "segment_ids[:, :, None] >= segment_ids[:, None, :]",
        "tests/unit/test_masks.py -k segments",
    ),
    Fault(
        "positions do not restart with a document", "model/masks.py",
        "counts = before - before.gather(1, first)", "counts = before",
        "tests/unit/test_masks.py -k restart",
    ),
    Fault(
        "a row that sees nothing gives the mean of all values", "model/attention.py",
        "out if mask.blind is None else out.masked_fill(mask.blind, 0.0)", "out",
        "tests/unit/test_masks.py -k zeros",
    ),
    Fault(
        "key-value heads are interleaved instead of grouped", "model/attention.py",
        "enable_gqa=q.shape[1] != k.shape[1]",
        "enable_gqa=False) if q.shape[1] == k.shape[1] else F.scaled_dot_product_attention(\n"
        "        q, k.repeat(1, q.shape[1] // k.shape[1], 1, 1),"
        " v.repeat(1, q.shape[1] // k.shape[1], 1, 1),\n"
        "        attn_mask=mask.allowed, is_causal=mask.is_causal",
        f"{BATTERY} -k logits_are",
    ),
    Fault(
        "positions restart in the cache", "model/cache.py",
        "torch.arange(start, stop, device=device)[None]",
        "torch.arange(0, new, device=device)[None]",
        f"{BATTERY} -k cached_decoding",
    ),
    Fault(
        "padding in the cache takes a position", "model/cache.py",
        "counts = self._real[:, :stop].cumsum(1) - 1",
        "counts = torch.ones_like(self._real[:, :stop]).cumsum(1) - 1",
        f"{BATTERY} -k padding_inside",
    ),
    Fault(
        "the cache of every layer is that of the first", "model/transformer.py",
        "cache=cache, layer=index", "cache=cache, layer=0",
        f"{BATTERY} -k cached_decoding",
    ),
    Fault(
        "dropout stays on in eval", "model/layers.py",
        "self.dropout = nn.Dropout(config.dropout)",
        "self.dropout = lambda x: nn.functional.dropout(x, config.dropout)",
        f"{BATTERY} -k dropout",
    ),
    Fault(
        "the tied head is a copy", "model/transformer.py",
        "return F.linear(features, self.embedding.weight)",
        "self.copied = getattr(self, 'copied', self.embedding.weight.detach().clone())\n"
        "            return F.linear(features, self.copied)",
        f"{BATTERY} -k 'tied_head or gradients'",
    ),
    Fault(
        "post-norm models are normalised once more", "model/transformer.py",
        "if config.pre_norm\n            else nn.Identity()", "",
        f"{BATTERY} -k size_is",
    ),
    Fault(
        "rmsnorm takes the mean away", "model/norm.py",
        "wide.square().mean(-1, keepdim=True)", "(wide - wide.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)",
        f"{BATTERY} -k logits_are",
    ),
    Fault(
        "the gate and the value change places", "model/feed_forward.py",
        "self.activation(self.gate_proj(x)) * up", "self.gate_proj(x) * self.activation(up)",
        f"{BATTERY} -k logits_are",
    ),
    Fault(
        "labels are the inputs themselves", "data/packing.py",
        "inputs, labels = row[:-1], row[1:].copy()", "inputs, labels = row[:-1], row[:-1].copy()",
        "tests/unit/test_packing.py",
    ),
    Fault(
        "windows come in the order of the text", "data/packing.py",
        "for index in random.permutation(len(self.data)):", "for index in range(len(self.data)):",
        "tests/unit/test_packing.py -k order_changes",
    ),
    Fault(
        "every epoch has the same order", "data/packing.py",
        "default_rng([self.seed, self.epoch])", "default_rng(self.seed)",
        "tests/unit/test_packing.py -k order_changes",
    ),
    Fault(
        "validation leaves out the last, partial window", "data/datamodule.py",
        "range(0, len(self.val_data.tokens), self.seq_len)",
        "range(0, len(self.val_data.tokens) - self.seq_len + 1, self.seq_len)",
        "tests/unit/test_packing.py -k data_module",
    ),
    Fault(
        "text can spell a special token", "data/tokenizer.py",
        "backend.encode_special_tokens = True", "pass",
        "tests/unit/test_tokenizer.py -k special_token",
    ),
    Fault(
        "loss is averaged over each batch, then over batches", "training/lit_module.py",
        "self.manual_backward(loss_sum)\n", "self.manual_backward(loss_sum / tokens)\n        tokens = 1\n",
        "tests/unit/test_training.py -k accumulating",
    ),
    Fault(
        "the last, partial accumulation of an epoch is dropped", "training/lit_module.py",
        " or self.trainer.is_last_batch", "",
        "tests/unit/test_training.py -k last_batches",
    ),
    Fault(
        "norms and embeddings decay", "training/optimizers.py",
        '{"params": others, "weight_decay": 0.0}', '{"params": others, "weight_decay": weight_decay}',
        "tests/unit/test_training.py -k decay",
    ),
    Fault(
        "eos is ignored", "generation/generate.py",
        "ended = ended | (token == options.eos_id)", "pass",
        "tests/unit/test_sampling.py -k ended",
    ),
    Fault(
        "top-p is computed and dropped", "generation/sampling.py",
        "probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)",
        "_ = probabilities.masked_fill(before >= options.top_p, 0.0)",
        "tests/unit/test_sampling.py -k definition",
    ),
    Fault(
        "top-p keeps one token too few", "generation/sampling.py",
        "before = probabilities.cumsum(-1) - probabilities", "before = probabilities.cumsum(-1)",
        "tests/unit/test_sampling.py -k definition",
    ),
    Fault(
        "the seed is ignored", "generation/generate.py",
        "options, generator)  # [B]", "options, None)  # [B]",
        "tests/unit/test_sampling.py -k repeatable",
    ),
    Fault(
        "prompts of unequal length are padded on the right without a mask", "generation/generate.py",
        "continued = _decode(model, ids, mask, options).tolist()",
        "continued = _decode(model, ids, None, options).tolist()",
        f"{BATTERY} -k generate_is",
    ),
    Fault(
        "unknown keys of a config are dropped", "config/strict.py",
        "for key in values if key not in known]", "for key in values if False]",
        "tests/unit/test_config.py -k unknown_keys",
    ),
    Fault(
        "a run overwrites the one before", "training/run.py",
        "folder.mkdir(parents=True)", "folder.mkdir(parents=True, exist_ok=True)",
        "tests/e2e/test_training_run.py -k overwrites",
    ),
    Fault(
        "validation leaves its best model for a later one", "training/callbacks.py",
        'if self.best is None or figures["val_loss"] < self.best["val_loss"]:', "if True:",
        "tests/e2e/test_training_run.py -k lowest_validation",
    ),
    Fault(
        "validations are counted in batches", "training/callbacks.py",
        "due = step // self.interval", "due = trainer.fit_loop.total_batch_idx // self.interval",
        "tests/unit/test_training.py -k counted_in",
    ),
    Fault(
        "a signal's handler stays after training", "training/interrupt.py",
        "    def __exit__(self, *exc: object) -> None:\n        self._restore()",
        "    def __exit__(self, *exc: object) -> None:\n        pass",
        "tests/unit/test_training.py -k handlers",
    ),
    Fault(
        "ignored labels are counted", "tasks/language_modeling.py",
        "if not bool(kept.all()):", "if False:",
        "tests/unit/test_task.py -k ignored",
    ),
    Fault(
        "padding inside a segment takes a position", "model/masks.py",
        "real = attention_mask.gather(1, order)", "real = torch.ones_like(attention_mask)",
        "tests/unit/test_masks.py -k wherever",
    ),
]  # fmt: skip


def run(tests, package):
    """pytest's result for a selection of tests against the package in a folder."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *shlex.split(tests)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def check_sound(tests, place):
    """Runs tests against an unchanged copy, where they must pass; returns what is wrong, or None."""
    shutil.copytree(ROOT / "src", place)
    done = run(tests, place)
    return None if done.returncode == 0 else f"fails without a fault\n{done.stdout[-800:]}"


def check(fault, place):
    """Runs a fault's tests against a copy of the package that has it; returns what is wrong, or
    None."""
    shutil.copytree(ROOT / "src", place)
    path = place / "miniformer" / fault.file
    source = path.read_text(encoding="utf-8")
    if source.count(fault.right) != 1:
        return f"fits {source.count(fault.right)} places of {fault.file}, not one"
    path.write_text(source.replace(fault.right, fault.wrong), encoding="utf-8")
    done = run(fault.tests, place)
    if done.returncode == 1 and "\nFAILED tests/" in done.stdout:  # tests ran, and one failed
        return None
    return (
        f"not caught by {fault.tests} (pytest's exit code {done.returncode})\n{done.stdout[-800:]}"
    )


def main():
    """Checks all faults, or those whose name holds a word of the command line, two at a time."""
    chosen = [f for f in FAULTS if not sys.argv[1:] or any(word in f.name for word in sys.argv[1:])]
    # A test that fails anyway catches nothing: each selection is run on sound code first.
    sound = list(dict.fromkeys(fault.tests for fault in chosen))
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        places = [Path(folder) / str(number) for number in range(len(sound) + len(chosen))]
        unsound = 0
        for tests, problem in zip(sound, pool.map(check_sound, sound, places), strict=False):
            unsound += problem is not None
            if problem is not None:
                print(f"UNSOUND {tests}\n        {problem}", flush=True)
        print(f"{len(sound) - unsound} of {len(sound)} selections of tests pass on sound code")
        missed = 0
        problems = pool.map(check, chosen, places[len(sound) :])
        for fault, problem in zip(chosen, problems, strict=True):
            missed += problem is not None
            print(f"{'caught' if problem is None else 'MISSED':<8}{fault.name}", flush=True)
            if problem is not None:
                print(f"        {problem}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults are caught")
    return 1 if missed or unsound or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
