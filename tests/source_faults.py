"""Seeded faults: plausible wrong code, each of which a test must catch.

    python -m tests.source_faults [WORD...] [--tests-passed]

A fault replaces a piece of the source in a copy of the package; its tests are then run against that
copy and must fail. A fault that no test notices, or that fits the source no more, ends this with
exit code 1. Words choose the faults whose names hold one of them. At the end the tests that caught
one run without it, for a test that fails anyway has caught nothing; `--tests-passed` leaves this
out, where all tests have just passed.
"""

import concurrent.futures
import dataclasses
import gc
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BATTERY = "tests/battery"
PUBLISHED = "tests/parity/test_hugging_face.py"
TEXTS = "tests/parity/test_hugging_face_texts.py"
FILES = "tests/unit/test_hf_files.py"
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["pytest", "hypothesis", "anyio.pytest_plugin", "lightning", "transformers"]
PASSED = "--tests-passed"


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
        "first, second = x.chunk(2, -1)", "first, second = x[..., ::2], x[..., 1::2]",
        "tests/unit/test_parts.py -k rotat",
    ),
    Fault(
        "rotary turns values of the whole head by the partial share", "model/rotary_scaling.py",
        "frequencies = base ** (-pair / dim)", "frequencies = base ** (-pair / (2 * dim))",
        f"{BATTERY} -k 'plain_reference and linear'",
    ),
    Fault(
        "YaRN slows the fast pairs and keeps the slow ones", "model/rotary_scaling.py",
        "1 - slowed + slowed / given", "slowed + (1 - slowed) / given",
        f"{BATTERY} -k 'plain_reference and yarn'",
    ),
    Fault(
        "LongRoPE's factors are those of a short text", "model/rotary_scaling.py",
        "torch.where(is_long, long, short)", "short",
        f"{BATTERY} -k 'plain_reference and longrope'",
    ),
    Fault(
        "a change counts from the first vector", "tasks/regression.py",
        "return float(feature[-1]), float", "return float(feature[0]), float",
        "tests/unit/test_tasks.py -k its_own_units",
    ),
    Fault(
        "figures of a series are not those of values", "tasks/regression.py",
        "return bases + self._scales", "return 0.0 * bases + self._scales",
        "tests/unit/test_tasks.py -k its_own_units",
    ),
    Fault(
        "errors are told in units of each series", "tasks/regression.py",
        "wrong = spread * wrong * self._scales(measured)", "wrong = spread * wrong",
        "tests/unit/test_tasks.py -k its_own_units",
    ),
    Fault(
        "a model sees how widely a series swings", "tasks/regression.py",
        "= (feature - base) / scale", "= feature - base",
        "tests/unit/test_tasks.py -k higher_or_wider",
    ),
    Fault(
        "answers are told in units of each series", "tasks/regression.py",
        "base + scale * (mean + spread * guess)", "base + (mean + spread * guess)",
        "tests/unit/test_tasks.py -k its_own_units",
    ),
    Fault(
        "nobody is told that values are taken for a series", "training/preparation.py",
        "*task.findings(), ", "",
        "tests/e2e/test_tasks.py -k never_was",
    ),
    Fault(
        "objects of features have no order", "data/fields.py",
        "names = sorted(value[0])", "names = list(value[0])",
        "tests/unit/test_tasks.py -k vectors_with_names",
    ),
    Fault(
        "a document with an end of its own has two", "tasks/prefix_language_modeling.py",
        "if self.prompt_begins_document and not ended:", "if self.prompt_begins_document:",
        "tests/unit/test_tokenizer.py -k documents",
    ),
    Fault(
        "local layers rotate with the global base", "model/position.py",
        "base = self.base_local if unscaled and self.base_local is not None else self.base",
        "base = self.base",
        f"{BATTERY} -k 'plain_reference and localbase'",
    ),
    Fault(
        "ALiBi's slopes begin with 1", "model/position.py",
        "2.0 ** (-8 * (head + 1) / power)", "2.0 ** (-8 * head / power)",
        f"{BATTERY} -k 'plain_reference and alibi'",
    ),
    Fault(
        "T5's buckets do not tell before from after", "model/position.py",
        "later = (ahead > 0) * buckets * self.both_ways", "later = 0",
        f"{BATTERY} -k 'plain_reference and encoder and relative'",
    ),
    Fault(
        "causal mask lets the next token through", "model/masks.py",
        ".tril(late)\n        return", ".tril(late + 1)\n        return",
        f"{BATTERY} -k 'plain_reference and causal'",
    ),
    Fault(
        "a window sees one token more", "model/masks.py",
        "allowed.triu(late - seen.window + 1)", "allowed.triu(late - seen.window)",
        f"{BATTERY} -k 'plain_reference and causal and window'",
    ),
    Fault(
        "padding is attended to", "model/masks.py",
        "(own == other) & (other != 0)", "(own == own) & (other == other)",
        f"{BATTERY} -k plain_reference",
    ),
    Fault(
        "packed documents see each other", "model/masks.py",
        "(own == other) & (other != 0)", "(own >= other) & (other != 0)",
        "tests/unit/test_masks.py",
    ),
    Fault(
        "positions do not restart with a document", "model/masks.py",
        "counts = before - before.gather(1, first)", "counts = before",
        "tests/unit/test_masks.py -k restart",
    ),
    Fault(
        "padding inside a segment takes a position", "model/masks.py",
        "real = attention_mask.gather(1, order)", "real = torch.ones_like(attention_mask)",
        "tests/unit/test_masks.py -k wherever",
    ),
    Fault(
        "a row that sees nothing gives the mean of all values", "model/kernels.py",
        "return out if mask.blind is None else out.masked_fill(mask.blind, 0.0)", "return out",
        "tests/unit/test_backends.py",
    ),
    Fault(
        "key-value heads are interleaved instead of grouped", "model/kernels.py",
        "k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)",
        "k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)",
        f"{BATTERY} -k 'plain_reference and gqa'",
    ),
    Fault(
        "the soft-cap comes before the position bias", "model/kernels.py",
        "    if scores.bias is not None:\n        s = s + scores.bias\n"
        "    if scores.softcap is not None:\n"
        "        s = scores.softcap * torch.tanh(s / scores.softcap)\n    if mask",
        "    if scores.softcap is not None:\n"
        "        s = scores.softcap * torch.tanh(s / scores.softcap)\n"
        "    if scores.bias is not None:\n        s = s + scores.bias\n    if mask",
        f"{BATTERY} -k 'plain_reference and alibi'",
    ),
    Fault(
        "attention sinks are computed and dropped", "model/kernels.py",
        "sinks.expand(seen.shape[0], -1, seen.shape[2], 1)",
        "sinks.expand(seen.shape[0], -1, seen.shape[2], 1) - 1e9",
        f"{BATTERY} -k 'plain_reference and sinks'",
    ),
    Fault(
        "queries and keys are normalised after their rotation", "model/attention.py",
        "        q = self.queries(x)\n        k, v = self.keys_values(x)\n"
        "        if context.rotation is not None:",
        "        q = self.queries(x)\n        k, v = self.keys_values(x)\n"
        "        if self.each_head and self.q_norm is not None and context.rotation is not None:\n"
        "            q = self.q_norm(rotate(self._split(self.q_proj(x), self.n_heads),"
        " context.rotation))\n"
        "            k = rotate(k, context.rotation)\n"
        "        elif context.rotation is not None:",
        f"{BATTERY} -k 'plain_reference and qkhead'",
    ),
    Fault(
        "positions restart in the cache", "model/cache.py",
        "torch.arange(self.start, self.stop, device=self.device)[None]",
        "torch.arange(0, new, device=self.device)[None]",
        f"{BATTERY} -k 'cached_decoding and full'",
    ),
    Fault(
        "padding in the cache takes a position", "model/cache.py",
        "counts = self.before + real.cumsum(1) - 1",
        "counts = self.before + torch.ones_like(real).cumsum(1) - 1",
        f"{BATTERY} -k 'cached_decoding and full'",
    ),
    Fault(
        "the cache of every layer is that of the first", "model/stack.py",
        "cache=cache, layer=index", "cache=cache, layer=0",
        f"{BATTERY} -k 'cached_decoding and full'",
    ),
    Fault(
        "a pass that failed stays in the cache", "model/cache.py",
        "self.stop = self.length  # a pass", "pass  # a pass",
        "tests/unit/test_cache.py -k fails",
    ),
    Fault(
        "a state of columns passes for a ring's", "model/cache.py",
        "{index}.{type(layer).__name__.lower()}.{name}", "{index}.{name}",
        "tests/unit/test_cache.py -k ring",
    ),
    Fault(
        "a decoder reads the padding of its source", "generation/generate.py",
        "moved(x, device) for x in source)", "moved(x, device) for x in source[:1])",
        "tests/unit/test_seq2seq_generation.py",
    ),
    Fault(
        "a line's number does not count blank lines", "data/index.py",
        "return row + 1 + int(np.searchsorted(self.blanks[0], row, side=\"right\"))", "return row + 1",
        "tests/unit/test_records.py tests/unit/test_index.py",
    ),
    Fault(
        "a ring forgets tokens that are still in the window", "model/cache_storage.py",
        "kept = min(keys.shape[2], self.window)", "kept = min(keys.shape[2], self.window - 2)",
        f"{BATTERY} -k 'cached_decoding and window'",
    ),
    Fault(
        "a cached value keeps half of its bits", "model/cache_storage.py",
        "clamp_min(1e-30) / 127", "clamp_min(1e-30) / 7",
        f"{BATTERY} -k 'cached_decoding and int8'",
    ),
    Fault(
        "the source is projected with the first layer's weights for all", "model/stack.py",
        "projected = [attention.keys_values(memory.features) for attention in attentions]",
        "projected = [attentions[0].keys_values(memory.features) for _ in attentions]",
        f"{BATTERY} -k 'plain_reference and seq2seq'",
    ),
    Fault(
        "the source's padding is attended to", "model/masks.py",
        "return AttentionMask(allowed=allowed | blind, blind=blind)", "return AttentionMask()",
        f"{BATTERY} -k 'plain_reference and seq2seq'",
    ),
    Fault(
        "a parallel feed-forward reads what attention added", "model/layers.py",
        'return x + read + self.change(x, "feed_forward", self.feed_forward)',
        'return x + read + self.change(x + read, "feed_forward", self.feed_forward)',
        f"{BATTERY} -k 'plain_reference and parallel'",
    ),
    Fault(
        "the norm of a branch's output is left out", "model/layers.py",
        'out = getattr(self, f"{name}_out_norm")(out)', "pass",
        f"{BATTERY} -k 'plain_reference and both'",
    ),
    Fault(
        "dropout stays on in eval", "model/layers.py",
        "self.dropout = nn.Dropout(config.dropout)",
        "self.dropout = lambda x: nn.functional.dropout(x, config.dropout)",
        f"{BATTERY} -k dropout",
    ),
    Fault(
        "the tied head is a copy", "model/head.py",
        "        weight = embedding if self.weight is None else self.weight\n"
        "        out = F.linear",
        "        self.copied = getattr(self, 'copied', embedding.detach().clone())\n"
        "        weight = self.copied if self.weight is None else self.weight\n"
        "        out = F.linear",
        f"{BATTERY} -k 'tied_head or gradients'",
    ),
    Fault(
        "the mean of a sequence counts its padding", "model/head.py",
        "real.sum(1).clamp_min(1)", "real.shape[1]",
        f"{BATTERY} -k one_vector",
    ),
    Fault(
        "post-norm models are normalised once more", "model/stack.py",
        'nn.Identity() if config.placement == "post" else make_norm(config)', "make_norm(config)",
        f"{BATTERY} -k size_is",
    ),
    Fault(
        "rmsnorm takes the mean away", "model/norm.py",
        "norm = torch.linalg.vector_norm(x, dim", "norm = torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim",
        f"{BATTERY} -k 'plain_reference and rmsnorm'",
    ),
    Fault(
        "rmsnorm's gradient is layer norm's", "model/norm.py",
        "dx.add_((grad @ weight)", "dx.add_(0 * (grad @ weight)",
        "tests/unit/test_norm.py",
    ),
    Fault(
        "the gate and the value change places", "model/feed_forward.py",
        "self.activation(self.gate_proj(x)) * up", "self.gate_proj(x) * self.activation(up)",
        f"{BATTERY} -k plain_reference",
    ),
    Fault(
        "a rotation's gradient is turned the same way again", "model/position.py",
        "return _turn(grad, cos, -sin), None, None", "return _turn(grad, cos, sin), None, None",
        f"{BATTERY} -k 'gradients and rotary'",
    ),
    Fault(
        "attention's scores keep no gradient of the softmax", "model/matmul_attention.py",
        "d_scores = torch._softmax_backward_data(d_shares, shares, -1, shares.dtype)",
        "d_scores = d_shares * shares",
        f"{BATTERY} -k 'gradients and matmul'",
    ),
    Fault(
        "scores are scaled after they have overflowed", "model/kernels.py",
        "s = ((q * scale) @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))",
        "s = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale",
        "tests/unit/test_backends.py -k overflow",
    ),
    Fault(
        "checkpointed layers draw other dropout", "model/checkpointing.py",
        "use_reentrant=False, **options", "use_reentrant=False, preserve_rng_state=False, **options",
        "tests/unit/test_checkpointing.py",
    ),
    Fault(
        "logits of ignored positions reach the weight", "model/cross_entropy.py",
        "inputs = features * kept.to(dtype)[:, None] if wanted[1] else features",
        "inputs = features",
        "tests/unit/test_cross_entropy.py",
    ),
    Fault(
        "the leak detector watches what it changed", "doctor/leaks.py",
        "later, real & ~later)", "later, real & later)",
        "tests/unit/test_doctor.py",
    ),
    Fault(
        "the leak detector gives all rows the same padding", "doctor/layouts.py",
        "Layout(name, mask, mask=mask) for",
        "Layout(name, mask[:1].expand_as(mask), mask=mask[:1].expand_as(mask)) for",
        "tests/unit/test_doctor.py -k only_some",
    ),
    Fault(
        "the leak detector changes one row only", "doctor/leaks.py",
        "yield row[:, None].expand_as(real)",
        "yield row[:, None].expand_as(real)\n            return",
        "tests/unit/test_doctor.py -k each_row",
    ),
    Fault(
        "the leak detector lets a large output hide the others", "doctor/leaks.py",
        "size = known.amax(0)  # [V]", "size = known.amax().expand(known.shape[-1])",
        "tests/unit/test_doctor.py -k huge",
    ),
    Fault(
        "the leak detector takes what is not a number for nothing", "doctor/leaks.py",
        "~(far <= self.tolerance)", "(far > self.tolerance)",
        "tests/unit/test_doctor.py -k not_numbers",
    ),
    Fault(
        "a model is left in eval mode", "generation/modes.py",
        "module.training = training", "pass",
        "tests/unit/test_doctor.py -k sound",
    ),
    Fault(
        "trimmed tokens stay in sight", "model/cache.py",
        "self.positions[self.positions >= kept] = -1", "pass",
        "tests/unit/test_cache.py -k trimmed",
    ),
    Fault(
        "a cache trimmed to nothing keeps its source", "model/cache.py",
        "        if columns == 0:\n            self.cross = None", "        pass",
        "tests/unit/test_cache.py -k another_source",
    ),
    Fault(
        "max_seq_len counts columns", "model/embedding.py",
        "length = shape[1] + int(cache.lengths.max())", "pass",
        "tests/unit/test_cache.py -k not_of_columns",
    ),
    Fault(
        "any number names a segment", "model/embedding.py",
        "negative = bool((segment_ids < 0).any())", "pass",
        "tests/unit/test_masks.py -k number_nothing",
    ),
    Fault(
        "packed rows flow into each other", "model/kernels.py",
        "(row[1:] != row[:-1]) | (segments", "(segments",
        "tests/unit/test_backends.py -k varlen",
    ),
    Fault(
        "a frozen embedding means that nothing is trained", "model/stack.py",
        "tensors = itertools.chain(inputs, self.parameters())", "tensors = inputs",
        "tests/unit/test_backends.py -k wanted",
    ),
    Fault(
        "beams change places but their positions do not", "model/cache.py",
        "for kept in (self.spans, self.positions)", "for kept in (self.spans,)",
        "tests/unit/test_cache.py -k any_sequence",
    ),
    Fault(
        "beams change places but their source does not", "model/cache.py",
        "self.cross = [(keys[sources], values[sources]) for keys, values in self.cross]", "pass",
        "tests/unit/test_cache.py -k projected_once",
    ),
    Fault(
        "dynamic scaling goes by the length so far", "model/stack.py",
        "lengths = cache.spans ", "lengths = positions.amax(1, keepdim=True) + 1 ",
        "tests/unit/test_cache.py -k dynamic",
    ),
    Fault(
        "dynamic scaling goes by the whole row", "model/masks.py",
        "return ends - torch.searchsorted(ordered, segment_ids)",
        "return (ordered != 0).sum(1, keepdim=True)",
        f"{BATTERY} -k 'plain_reference and dynamic'",
    ),
    Fault(
        "dynamic scaling counts padding", "model/masks.py",
        "return attention_mask.sum(1, keepdim=True)",
        "return torch.full((1, 1), length, device=device)",
        f"{BATTERY} -k 'plain_reference and dynamic'",
    ),
    Fault(
        "a prompt's rotation goes by the longest of its batch", "generation/decoding.py",
        "if mask is not None:  # a row's", "if False:  # a row's",
        f"{BATTERY} -k 'generate_is and dynamic'",
    ),
    Fault(
        "rows change places but their spans do not", "model/cache.py",
        "for kept in (self.spans, self.positions)", "for kept in (self.positions,)",
        "tests/unit/test_cache.py -k dynamic",
    ),
    Fault(
        "varlen's window is one token too wide", "model/kernels.py",
        "(-1 if seen.window is None else seen.window - 1, 0)", "(-1 if seen.window is None else seen.window, 0)",
        "tests/unit/test_backends.py -k varlen",
    ),
    Fault(
        "FlashAttention is given heads of 6 numbers", "model/kernels.py",
        "return F.pad(x, (0, -width % 8))", "return x",
        "tests/unit/test_backends.py -k varlen_rounds",
    ),
    Fault(
        "scores are scaled by the width that heads are rounded up to", "model/kernels.py",
        "scale=width**-0.5 if scores.scale is None else scores.scale", "scale=scores.scale",
        "tests/unit/test_backends.py -k varlen_rounds",
    ),
    Fault(
        "a GPU is asked for heads that its kernels do not have", "model/backends.py",
        "if call.width > 256:", "if False:",
        "tests/unit/test_backends.py -k backend",
    ),
    Fault(
        "torch 2.11 is asked for query heads that share keys", "model/kernels.py",
        'if shared and "enable_gqa" not in inspect', 'if False and "enable_gqa" not in inspect',
        "tests/unit/test_backends.py -k older_varlen",
    ),
    Fault(
        "labels are the inputs themselves", "data/packing.py",
        "rows[:, 1:].copy()", "rows[:, :-1].copy()",
        "tests/unit/test_packing.py",
    ),
    Fault(
        "windows come in the order of the text", "data/packing.py",
        "random.permutation(starts) + offset", "starts + offset",
        "tests/unit/test_packing.py -k random_order",
    ),
    Fault(
        "every epoch has the same order", "data/batches.py",
        "default_rng([self.seed, *place])", "default_rng([self.seed, *place[1:]])",
        "tests/unit/test_batches.py -k order_changes",
    ),
    Fault(
        "validation leaves out the last, partial window", "data/packing.py",
        "full + (rest > 0)", "max(1, full)",
        "tests/unit/test_packing.py -k validation",
    ),
    Fault(
        "a pool's last token predicts a boundary that is not there", "data/packing.py",
        "predicted -= int(tokens[0] != self.boundary_id)", "pass",
        "tests/unit/test_packing.py -k end_of_a_pool",
    ),
    Fault(
        "a pass that is taken up begins at its pool's first batch", "data/batches.py",
        "islice(cuts, skipped, None)", "islice(cuts, 0, None)",
        "tests/unit/test_batches.py -k taken_up",
    ),
    Fault(
        "a batch's chance depends on what was served before it", "data/batches.py",
        "self._random(epoch, number))", "self._random(epoch, number - first))",
        "tests/unit/test_batches.py -k taken_up",
    ),
    Fault(
        "ranks see the same batches", "data/batches.py",
        "turn[min(self.rank, len(turn) - 1)]", "turn[0]",
        "tests/unit/test_batches.py -k ranks",
    ),
    Fault(
        "a bad record in a worker is passed over", "data/pools.py",
        "            if isinstance(table, UserError):\n                raise table\n",
        "            if isinstance(table, UserError):\n                continue\n",
        "tests/unit/test_batches.py -k bad_record",
    ),
    Fault(
        "a bucket's budget forgets padding", "data/buckets.py",
        "(end + 1 - begin) * sum(longest) > tokens", "lengths[order[begin : end + 1]].sum() > tokens",
        "tests/unit/test_batches.py -k budget",
    ),
    Fault(
        "an encoder sees the first label of a prefix model", "tasks/prefix_language_modeling.py",
        "sources.append(ids[:cut])", "sources.append(ids[: cut + 1])",
        "tests/unit/test_tasks.py -k no_label",
    ),
    Fault(
        "a decoder sees its own label", "tasks/pairs.py",
        "np.concatenate(([start_id], row[:-1]))", "row",
        "tests/unit/test_tasks.py -k random_tokens",
    ),
    Fault(
        "padding of inputs is read", "tasks/inputs.py",
        'batch["attention_mask"] = mask', "pass",
        "tests/unit/test_tasks.py -k gradients",
    ),
    Fault(
        "padding of sources is read", "tasks/pairs.py",
        'batch["source_mask"] = mask', "pass",
        "tests/unit/test_tasks.py -k gradients",
    ),
    Fault(
        "a weighted loss is divided by the number of records", "tasks/classification.py",
        "weights[labels[kept]].sum()", "kept.sum()",
        "tests/unit/test_tasks.py -k formula",
    ),
    Fault(
        "values are given as the model knows them", "tasks/regression.py",
        "base + scale * (mean + spread * guess)", "base + scale * guess",
        "tests/unit/test_tasks.py -k standardised",
    ),
    Fault(
        "a label that was never seen passes", "tasks/classification.py",
        "or value in self.classes:", "or value is not None:",
        "tests/unit/test_tasks.py -k never_saw",
    ),
    Fault(
        "answers come in the order of lengths", "tasks/writing.py",
        "for number in range(len(starts))", "for number in order",
        "tests/unit/test_tasks.py -k order_of_the_inputs",
    ),
    Fault(
        "the boundary that a directory declares is not read", "data/tokenizer.py",
        'for name in ("eos_token", "sep_token", "bos_token"):', "for name in ():",
        "tests/unit/test_tokenizer.py -k foreign_tokenizer",
    ),
    Fault(
        "a tokenizer learns from all of a large text", "data/tokenizer_training.py",
        "if self.size >= self.most:", "if False:",
        "tests/unit/test_tokenizer.py -k what_is_large",
    ),
    Fault(
        "ties in wordpiece are broken by a hash table", "data/tokenizer_training.py",
        "special_tokens=[BOUNDARY, PAD, UNKNOWN, *alphabet],", "special_tokens=[BOUNDARY, PAD, UNKNOWN],",
        "tests/unit/test_tokenizer.py -k training_again",
    ),
    Fault(
        "duplicates are found between splits only", "data/check.py",
        "places = np.sort(again)", "places = again[:0]",
        "tests/unit/test_data_check.py -k plain_count",
    ),
    Fault(
        "a check ends at the first fault", "data/check.py",
        "            yield row, error\n", "            yield row, error\n            return\n",
        "tests/unit/test_data_check.py -k faults_are_counted",
    ),
    Fault(
        "text can spell a special token", "data/tokenizer.py",
        "backend.encode_special_tokens = True", "pass",
        "tests/unit/test_tokenizer.py -k special_token",
    ),
    Fault(
        "loss is averaged over each batch, then over batches", "training/lit_module.py",
        "            loss, count = self.objective(batch)\n", "            loss, count = self.objective(batch)\n            loss, count = loss / count, count / count\n",
        "tests/unit/test_training.py -k accumulating",
    ),
    Fault(
        "the last, partial accumulation of an epoch is dropped", "training/lit_module.py",
        " or self.trainer.is_last_batch", "",
        "tests/unit/test_training.py -k last_batches",
    ),
    Fault(
        "norms and embeddings decay", "training/parameter_groups.py",
        "weight_decay if decays else 0.0", "weight_decay",
        "tests/unit/test_training.py -k decay",
    ),
    Fault(
        "eos is ignored", "generation/decoding.py",
        "ended = [each in ends for each in tokens]", "ended = [False for each in tokens]",
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
        "the seed is ignored", "generation/decoding.py",
        "logits, step), options, generator)", "logits, step), options, None)",
        "tests/unit/test_sampling.py -k repeatable",
    ),
    Fault(
        "prompts of unequal length are padded on the right without a mask", "generation/prompts.py",
        "return ids, None if bool(mask.all()) else mask", "return ids, None",
        f"{BATTERY} -k generate_is",
    ),
    Fault(
        "targets are embedded as sources", "model/seq2seq.py",
        "self._embed(target, self.embedding)",
        "self._embed(target, self.source_embedding or self.embedding)",
        "tests/battery -k 'two and gradients'",
    ),
    Fault(
        "a source is read with the tokenizer of targets", "tasks/seq2seq.py",
        "        tokenizer = tokenizer.of_sources\n", "",
        "tests/unit/test_tasks.py -k tokenizer_each",
    ),
    Fault(
        "unknown keys of a config are dropped", "config/strict.py",
        "for key in values if key not in known]", "for key in values if False]",
        "tests/unit/test_config.py -k unknown_keys",
    ),
    Fault(
        "a run overwrites the one before", "training/preparation.py",
        "folder.mkdir(parents=True)", "folder.mkdir(parents=True, exist_ok=True)",
        "tests/e2e/test_training_run.py -k overwrites",
    ),
    Fault(
        "validation leaves its best model for a later one", "training/callbacks.py",
        "if self.best is not None and not self._rank(figures) < self._rank(self.best):", "if False:",
        "tests/e2e/test_training_run.py -k lowest_validation",
    ),
    Fault(
        "the best model is the one of the smallest accuracy", "training/callbacks.py",
        "-1 if larger else 1", "1",
        "tests/unit/test_training.py -k best_is_what_the_metric_says",
    ),
    Fault(
        "classifiers are told apart by their loss", "training/preparation.py",
        "config.checkpoint_metric or task.metrics[0]", 'config.checkpoint_metric or "loss"',
        "tests/unit/test_training.py -k tells_the_best_model",
    ),
    Fault(
        "of models that are as good the first is kept", "training/callbacks.py",
        'self.sign * figures[self.metric], figures["val_loss"]', 'self.sign * figures[self.metric], 0.0',
        "tests/unit/test_training.py -k best_is_what_the_metric_says",
    ),
    Fault(
        "patience ends a run that got better", "training/callbacks.py",
        "            self.since_best = 0\n", "            pass\n",
        "tests/unit/test_training.py -k best_is_what_the_metric_says",
    ),
    Fault(
        "the mean of the last weights is never tried", "training/run.py",
        "set_weights(run.model, last.mean())", "pass",
        "tests/e2e/test_training_run.py -k mean_of_the_last_weights",
    ),
    Fault(
        "validations are counted in batches", "training/callbacks.py",
        "due = step // self.interval", "due = trainer.fit_loop.total_batch_idx // self.interval",
        "tests/unit/test_training.py -k counted_in",
    ),
    Fault(
        "a signal's handler stays after training", "training/interrupt.py",
        "        self._restore()\n        if isinstance(error, SystemExit)",
        "        if isinstance(error, SystemExit)",
        "tests/unit/test_training.py -k handlers",
    ),
    Fault(
        "ignored labels are counted", "tasks/task.py",
        "if not bool(kept.all()):", "if False:",
        "tests/unit/test_task.py -k ignored",
    ),
    Fault(
        "a zero-centred norm forgets the one", "model/norm.py",
        "gain = 1 + self.weight", "gain = 0 + self.weight",
        f"{PUBLISHED} -k 'logits and gemma-0'",
    ),
    Fault(
        "fairseq's sines count from 1", "model/position.py",
        "positions[..., None] + 2", "positions[..., None] + 1",
        f"{PUBLISHED} -k 'logits and m2m_100-0'",
    ),
    Fault(
        "the pooler's activation is relu", "model/head.py",
        '"dense_tanh": torch.tanh', '"dense_tanh": F.relu',
        f"{TEXTS} -k 'classes and roberta'",
    ),
    Fault(
        "GPT-NeoX's heads are taken for one", "interop/hf/families/gpt.py",
        "layout=by_head(config.n_heads)", "layout=by_head(1)",
        f"{PUBLISHED} -k 'logits and gpt_neox-0'",
    ),
    Fault(
        "GPT-2's square weights stay turned", "interop/hf/weights.py",
        "lambda theirs, _: [theirs.t()], of_bias=SAME", "lambda theirs, _: [theirs], of_bias=SAME",
        f"{PUBLISHED} -k 'logits and gpt2-0'",
    ),
    Fault(
        "Phi-3's gate is taken for its up", "interop/hf/families/llama.py",
        '("feed_forward.gate_proj", "feed_forward.up_proj")', '("feed_forward.up_proj", "feed_forward.gate_proj")',
        f"{PUBLISHED} -k 'logits and phi3-0'",
    ),
    Fault(
        "RoBERTa's positions begin with padding's", "interop/hf/weights.py",
        "lambda theirs, _: [theirs[rows:]]", "lambda theirs, _: [theirs[:-rows]]",
        f"{PUBLISHED} -k 'logits and roberta-0'",
    ),
    Fault(
        "a rotation's base is that of the paper", "interop/hf/attention.py",
        'fields["rotary_base"] = given.get("rope_theta", old)', 'fields["rotary_base"] = base',
        f"{PUBLISHED} -k 'logits and llama'",
    ),
    Fault(
        "a yarn's length is left out", "interop/hf/attention.py",
        '"original_max_position_embeddings": "original_max_seq_len",\n        "beta_fast"', '"beta_fast"',
        f"{PUBLISHED} -k 'llama or mistral or qwen2 or olmo2'",
    ),
    Fault(
        "windows are where they are not", "interop/hf/attention.py",
        '"L" if each == _SLIDING else "G"', '"G" if each == _SLIDING else "L"',
        f"{PUBLISHED} -k 'logits and gemma2'",
    ),
    Fault(
        "T5's logits are never scaled", "interop/hf/families/seq2seq.py",
        'fields["d_model"] ** -0.5 if scaled else None', "None",
        f"{PUBLISHED} -k 'logits and t5-0'",
    ),
    Fault(
        "a head that is said to be tied is", "interop/hf/reading.py",
        'found["tie_embeddings"] = _equal(entries[copy], originals[0])', 'found["tie_embeddings"] = True',
        f"{FILES} -k untied",
    ),
    Fault(
        "a tensor that nothing uses is passed over", "interop/hf/reading.py",
        'raise UserError(f"tensor {entry.name!r} {why}")', "continue",
        f"{FILES} -k named",
    ),
    Fault(
        "shapes are not compared", "interop/hf/reading.py",
        "if entry.shape != piece.shape():", "if False:",
        f"{FILES} -k named",
    ),
    Fault(
        "a config may want what the files have not", "interop/hf/reading.py",
        "if wanted > there:", "if False:",
        f"{FILES} -k refused",
    ),
    Fault(
        "code of a model's own is passed over", "interop/hf/reading.py",
        'is not None and custom_code == "refuse"', 'is not None and custom_code == "run"',
        f"{FILES} -k refused",
    ),
    Fault(
        "a link may lead anywhere", "interop/hf/files.py",
        "if not any(real.is_relative_to(root) for root in self._roots):", "if False:",
        f"{FILES} -k link",
    ),
    Fault(
        "a shard may be anywhere", "interop/hf/files.py",
        "not isinstance(x, str) or Path(x).name != x", "not isinstance(x, str)",
        f"{FILES} -k index",
    ),
    Fault(
        "what is there is written over", "checkpoint/directory.py",
        "if directory.is_dir() and any(directory.iterdir()):", "if False:",
        f"{FILES} -k over",
    ),
    Fault(
        "a tokenizer's template is not looked at", "data/tokenizer.py",
        "self._template = _template(backend)", "self._template = None",
        f"{TEXTS} -k 'texts_are and (bert or llama)'",
    ),
    Fault(
        "a decoder begins with the boundary, whatever the task says", "tasks/seq2seq.py",
        "tokenizer.boundary_id if self.start_id is None else self.start_id", "tokenizer.boundary_id",
        f"{TEXTS} -k 'texts_are and t5'",
    ),
    Fault(
        "a regression leaves in its own units", "interop/hf/writing.py",
        "(tensor.double() * spread + mean)", "(tensor.double() * spread)",
        f"{TEXTS} -k units",
    ),
    Fault(
        "what theirs say of decoding is forgotten", "interop/hf/decoding.py",
        'if isinstance(kept.get("generation_config"), dict):', "if False:",
        f"{TEXTS} -k decoding",
    ),
    Fault(
        "no family is too far away", "interop/hf/configs.py",
        "if values[field] != back[field] and field not in family.free", "if False",
        f"{FILES} -k 'parts_that'",
    ),
    Fault(
        "nobody asks for marks, and pairs have none", "tasks/input_task.py",
        'return self.marks_pairs and self.kind() == "pair"',
        "return False",
        "tests/unit/test_tasks.py -k marked_where_nothing_is_said",
    ),
    Fault(
        "a run marks pairs for a model that knows no marks", "training/beginning.py",
        "if task in _OF_INPUTS and not _marks(described):",
        "if False:",
        "tests/e2e/test_beginning.py -k first_model_read_them",
    ),
    Fault(
        "an export is silent about marks", "interop/hf/writing.py",
        '{marks if pairs else ""}', "",
        "tests/e2e/test_beginning.py -k tells_of_marks",
    ),
    Fault(
        "a model without a tokenizer gets one of other ids", "training/beginning.py",
        "elif config.tokenizer is None and shape.input_dim is None:", "elif False:",
        "tests/e2e/test_beginning.py -k without_a_tokenizer",
    ),
    Fault(
        "a run begins with chance after all", "training/beginning.py",
        "model.load_state_dict({**wanted, **kept})", "model.load_state_dict(wanted)",
        "tests/e2e/test_beginning.py -k classifier",
    ),
    Fault(
        "a resumed run begins with other chance", "training/run_state.py",
        "            _set_random_state(states[trainer.global_rank])", "            pass",
        "tests/e2e/test_resume.py -k middle_of_a_step",
    ),
    Fault(
        "a resumed run begins its data anew", "training/run_state.py",
        'trainer.datamodule.load_state_dict(about["data"])', "pass",
        "tests/e2e/test_resume.py -k middle_of_a_step",
    ),
    Fault(
        "a resumed run forgets how long it has been no better", "training/callbacks.py",
        'self.best, self.since_best = state["best"], state["since_best"]', 'self.best = state["best"]',
        "tests/e2e/test_resume.py -k early_stopping",
    ),
    Fault(
        "an older state goes before the new one is whole", "training/checkpoints.py",
        "            _remove(beside)\n            beside.mkdir(parents=True)",
        "            _remove(beside.parent)\n            beside.mkdir(parents=True)",
        "tests/e2e/test_resume.py -k states_are_written",
    ),
    Fault(
        "an interrupted validation is forgotten", "training/run_state.py",
        "            if self.validate.pending:\n                self.validate.run_now(trainer)\n", "",
        "tests/e2e/test_resume.py -k in_a_validation",
    ),
    Fault(
        "states are of any data", "training/run_state.py",
        'if about.get("facts") != self.facts:', "if False:",
        "tests/e2e/test_resume.py -k has_changed",
    ),
    Fault(
        "a model that was being replaced is lost", "model/hub.py",
        "return before if not directory.exists() and before.is_dir() else directory",
        "return directory",
        "tests/e2e/test_resume.py -k being_replaced",
    ),
    Fault(
        "the moving average forgets too slowly at first", "training/averaging.py",
        "decay = min(self.decay, (1 + self.steps) / (10 + self.steps))", "decay = self.decay",
        "tests/unit/test_averaging.py -k defined_by",
    ),
    Fault(
        "the model keeps the averages", "training/averaging.py",
        "        try:\n            yield\n        finally:\n            self._swap()",
        "        yield",
        "tests/unit/test_averaging.py -k for_a_while",
    ),
    Fault(
        "Muon's updates shrink with the matrix", "training/muon.py",
        ".mul_(_RMS * max(shape) ** 0.5)", "",
        "tests/unit/test_optimizers.py -k as_large",
    ),
    Fault(
        "a wide matrix goes through one polynomial twice", "training/muon.py",
        "gram = step @ gram @ step", "gram = step @ gram",
        "tests/unit/test_optimizers.py -k keeps_directions",
    ),
    Fault(
        "Muon takes embeddings, too", "training/optimizers.py",
        "if isinstance(module, nn.Linear) and \".layers.\" in f\".{name}.\"",
        "if getattr(module, \"weight\", None) is not None and module.weight.dim() == 2",
        "tests/unit/test_optimizers.py -k way_of_adamw",
    ),
    Fault(
        "all layers learn at one rate", "training/parameter_groups.py",
        "scale = layer_lr_decay ** _below_top(name, depths)", "scale = 1.0",
        "tests/unit/test_optimizers.py -k slower",
    ),
    Fault(
        "a rank without a batch counts another's again", "training/objective.py",
        "if repeated(batch):", "if False:",
        "tests/unit/test_training.py -k counts_nothing",
    ),
    Fault(
        "a batch is traced to its neighbours", "data/batches.py",
        'return list(dict.fromkeys(found.tolist()))', 'return [n + 1 for n in found.tolist()]',
        "tests/unit/test_batches.py -k traced",
    ),
    Fault(
        "a loss that is no number is learnt", "training/finite.py",
        "        if broken:", "        if False:",
        "tests/unit/test_finite.py",
    ),
    Fault(
        "a validation in the middle of a step", "training/callbacks.py",
        "        if step == self._step:  # in the middle of one\n            return\n        self._step = step\n        progress",
        "        self._step = step\n        progress",
        "tests/unit/test_training.py -k middle_of_a_step",
    ),
    Fault(
        "a sample's text is taken for markup", "training/report/chart_parts.py",
        'return html.escape(plain.encode("utf-8", "replace").decode("utf-8"))',
        'return plain.encode("utf-8", "replace").decode("utf-8")',
        "tests/unit/test_report.py -k stays_text",
    ),
    Fault(
        "a chart stands on its head", "training/report/charts.py",
        'f"{number(across.place(x))} {number(1000 - up.place(y))}"',
        'f"{number(across.place(x))} {number(up.place(y))}"',
        "tests/unit/test_report.py -k points_stand",
    ),
    Fault(
        "a logarithmic axis is a linear one with other words", "training/report/chart_parts.py",
        "value, low, high = math.log10(value), math.log10(low), math.log10(high)", "pass",
        "tests/unit/test_report.py -k points_stand",
    ),
    Fault(
        "a long curve loses its spikes", "training/report/charts.py",
        "kept |= {min(group, key=lambda i: points[i][1]), max(group, key=lambda i: points[i][1])}",
        "kept |= {group[0]}",
        "tests/unit/test_report.py -k thinning",
    ),
    Fault(
        "an infinite loss ends the report", "training/report/chart_parts.py",
        "return -_LARGEST < value < _LARGEST and", "return value == value and",
        "tests/unit/test_report.py -k 'any'",
    ),
    Fault(
        "the best step is that of the highest loss", "training/report/curves.py",
        "loss, step = min(good)", "loss, step = max(good)",
        "tests/unit/test_report.py -k whole_page",
    ),
    Fault(
        "a report may load things", "training/report/page.py",
        "default-src 'none'; ", "", "tests/unit/test_report.py -k loaded",
    ),
    Fault(
        "layer 1 and layer 11 are one", "training/gradients.py",
        r"\w+\.\d+(?=\.)", r"\w+\.\d", "tests/unit/test_gradients.py -k each_layer",
    ),
    Fault(
        "norms are added, not their squares", "training/gradients.py",
        "index_add_(0, index, norms.square())", "index_add_(0, index, norms).square()",
        "tests/unit/test_gradients.py -k each_layer",
    ),
    Fault(
        "a product of N x N matrices is N^3 operations", "training/machine.py",
        "work = 2.0 * size**3", "work = 1.0 * size**3",
        "tests/unit/test_machine.py -k best_of",
    ),
    Fault(
        "how long a GPU's library takes to begin counts as its speed", "training/machine.py",
        "torch.mm(first, first)  #", "first  #",
        "tests/unit/test_machine.py -k slow_to_begin",
    ),
    Fault(
        "bfloat16 is taken wherever the CPU has it, fast or not", "training/machine.py",
        ">= _FASTER * peak_flops", ">= 0 * peak_flops",
        "tests/unit/test_machine.py -k bfloat16_on_a_cpu",
    ),
    Fault(
        "a card that emulates bfloat16 is taken for one that has it", "training/machine.py",
        "including_emulation=False", "including_emulation=True",
        "tests/unit/test_machine.py -k elsewhere",
    ),
    Fault(
        "GB are powers of 1024", "config/units.py",
        "1000**power for", "1024**power for",
        "tests/unit/test_memory.py -k 'sizes_are_read'",
    ),
    Fault(
        "a tensor that is gone still counts", "model/allocations.py",
        "if not ref.expired()}", "if ref}",
        "tests/unit/test_memory.py -k 'chains'",
    ),
    Fault(
        "the peak is what is left at the end", "model/allocations.py",
        "self.peak = max(self.peak, self.living())", "self.peak = self.living()",
        "tests/unit/test_memory.py -k 'allocator'",
    ),
    Fault(
        "gradients are forgotten between accumulated batches", "training/memory.py",
        "if size >= batch_size:  # the", "if size:  # the",
        "tests/unit/test_memory.py -k 'gradients_stand'",
    ),
    Fault(
        "the lightest batch is measured", "training/memory.py",
        "batch = max(islice(", "batch = min(islice(",
        "tests/unit/test_memory.py -k 'heaviest'",
    ),
    Fault(
        "the optimiser's state is forgotten", "training/memory.py",
        "base + int(optimizer_bytes_per_param * trained)", "base + int(0 * trained)",
        "tests/unit/test_memory.py -k 'fastest'",
    ),
    Fault(
        "a plan takes smaller steps than asked", "training/memory.py",
        "Plan(size, -(-batch_size // size), how", "Plan(size, batch_size // size, how",
        "tests/unit/test_memory.py -k 'never_fewer'",
    ),
    Fault(
        "tiny batches are preferred to recomputation", "training/memory.py",
        "or tokens[size] >= _ENOUGH_TOKENS", "or tokens[size] >= 1",
        "tests/unit/test_memory.py -k 'fastest'",
    ),
    Fault(
        "a micro-batch that does not fit is taken", "training/memory.py",
        "        if new_grown <= room:", "        if True:",
        "tests/unit/test_memory.py -k 'found_fits'",
    ),
    Fault(
        "trying a model out moves the run's random numbers", "training/trial.py",
        "with torch.random.fork_rng():", "with contextlib.nullcontext():",
        "tests/unit/test_memory.py tests/unit/test_finding.py -k 'left_as_it_was'",
    ),
    Fault(
        "the range test leaves its weights behind", "training/finding.py",
        "model.load_state_dict(before)", "before.clear()",
        "tests/unit/test_finding.py -k 'left_as_it_was'",
    ),
    Fault(
        "the range test goes on though the loss diverges", "training/finding.py",
        "if not math.isfinite(smooth) or smooth > _DIVERGED", "if not math.isfinite(smooth) or 0 > _DIVERGED",
        "tests/unit/test_finding.py -k 'stops_soon or gradient_descent'",
    ),
    Fault(
        "the range test does not clip", "training/finding.py",
        "            if gradient_clip_val:", "            if False:",
        "tests/unit/test_finding.py -k 'gradient_descent'",
    ),
    Fault(
        "the rate of the lowest loss is suggested", "training/finding.py",
        "rates[lowest] / _BELOW", "rates[lowest]",
        "tests/unit/test_finding.py -k 'gradient_descent'",
    ),
    Fault(
        "a batch that does not fit is suggested", "training/finding.py",
        "if limit is not None and taken > limit", "if limit is not None and taken < 0",
        "tests/unit/test_finding.py -k 'more_than_it_seemed'",
    ),
    Fault(
        "what was trained before begins with the rate of random weights", "training/preparation.py",
        "begins_anew=anew", "begins_anew=True",
        "tests/e2e/test_beginning.py -k learns_on",
    ),
    Fault(
        "a dropped token takes its neighbours' dimensions along", "model/stack.py",
        "nn.Dropout1d(config.token_dropout)", "nn.Dropout(config.token_dropout)",
        "tests/unit/test_parts.py -k token_dropout",
    ),
    Fault(
        "smoothing takes nothing from the label", "model/cross_entropy.py",
        "(1 - label_smoothing) * log_p", "log_p",
        "tests/unit/test_cross_entropy.py -k whole_logits",
    ),
    Fault(
        "the gradient knows of no smoothing", "model/cross_entropy.py",
        "            z.sub_(label_smoothing / vocabulary)\n", "",
        "tests/unit/test_cross_entropy.py -k whole_logits",
    ),
    Fault(
        "validation smooths its labels, too", "tasks/task.py",
        "if label_smoothing and model.training else {}", "if label_smoothing else {}",
        "tests/unit/test_tasks.py -k smoothed",
    ),
    Fault(
        "R-Drop draws padding together, too", "tasks/pairs.py",
        "model.logits(features[kept])", "model.logits(features)",
        "tests/unit/test_tasks.py -k targets_are_drawn_together",
    ),
    Fault(
        "R-Drop draws one pass to itself", "tasks/classification.py",
        "disagreement(first, second)", "disagreement(first, first)",
        "tests/unit/test_tasks.py -k drawn_together",
    ),
    Fault(
        "a test writes to as few examples as a validation", "training/lit_module.py",
        "self._measure(batch, test=True)", "self._measure(batch)",
        "tests/e2e/test_tasks.py -k translate_and_says",
    ),
    Fault(
        "every row's beams are those of the first row", "generation/beam.py",
        "(origin + self._offsets).flatten()", "origin.flatten()",
        "tests/unit/test_beam.py -k alone",
    ),
    Fault(
        "a search stops at what could be scored at the next token", "generation/beam.py",
        "self.running.scores[:, 0] / max(divisors)", "self.running.scores[:, 0] / divisors[0]",
        "tests/unit/test_beam.py -k stopping_early",
    ),
    Fault(
        "a search goes on though nothing better can come", "generation/beam.py",
        "return bool((self.ended.scores[:, -1] >= reachable).all())", "return False",
        "tests/unit/test_beam.py -k nothing_better",
    ),
    Fault(
        "long hypotheses are divided by nothing", "generation/beam.py",
        "base**self.options.length_penalty", "base**0",
        "tests/unit/test_beam.py -k wide_enough",
    ),
    Fault(
        "beams change places but their tokens do not", "generation/beam.py",
        "grown.rows(chosen)._replace(scores=scores)", "grown.rows(chosen * 0)._replace(scores=scores)",
        "tests/unit/test_beam.py -k wide_enough",
    ),
    Fault(
        "a size of model is chosen over a width that was given", "training/sizing.py",
        "any(name in config.model_config for name in SHAPE)", "False",
        "tests/unit/test_sizing.py -k heard",
    ),
    Fault(
        "batches of little text are as large as those of much", "training/sizing.py",
        "min(max(tokens / 1_000, _LEAST_TOKENS), _MOST_TOKENS)", "_MOST_TOKENS",
        "tests/unit/test_sizing.py -k small_batches",
    ),
    Fault(
        "each of several devices takes the whole batch", "training/sizing.py",
        "batch_for(tokens, row, config.world_size)", "batch_for(tokens, row)",
        "tests/unit/test_sizing.py -k chooses_batches",
    ),
    Fault(
        "the batches that data chose are told and not trained with", "training/sizing.py",
        "data.batch_size, data.batch_tokens = size, most", "data.batch_tokens = most",
        "tests/unit/test_sizing.py -k chooses_batches",
    ),
    Fault(
        "a classifier of little text knows few subwords", "training/tokenizers.py",
        "ids is None and whole and", "ids is None and",
        "tests/unit/test_sizing.py -k sixteen",
    ),
    Fault(
        "a vocabulary that was given is forgotten", "training/tokenizers.py",
        "if ids is None and", "if",
        "tests/unit/test_sizing.py -k given_of_them",
    ),
    Fault(
        "a stream that has ended is waited for", "training/callbacks.py",
        "        if self._empty < 2:  # one", "        if True:  # one",
        "tests/e2e/test_tasks.py -k ends_early --timeout 20",
    ),
    Fault(
        "a few phrases make words of none", "training/tokenizers.py",
        "return words > 0.9 * some", "return words == some",
        "tests/unit/test_choosing_tokenizers.py -k first_texts",
    ),
    Fault(
        "a language without spaces has long words", "training/tokenizers.py",
        "len(text) <= _LONGEST_WORD and ", "",
        "tests/unit/test_choosing_tokenizers.py -k first_texts",
    ),
    Fault(
        "words share a tokenizer with their sounds", "training/tokenizers.py",
        "return single_words(sources) and not single_words(targets)", "return False",
        "tests/unit/test_choosing_tokenizers.py -k their_sounds",
    ),
    Fault(
        "words are taken apart whatever is said of tokenizers", "training/tokenizers.py",
        "fields and _open(config, task) and", "fields and",
        "tests/unit/test_choosing_tokenizers.py -k is_said",
    ),
    Fault(
        "a tokenizer learns from texts that the task does not read", "training/tokenizers.py",
        "islice(task.texts(record), number, number + 1)", 'iter([list(record.values())[number]])',
        "tests/unit/test_choosing_tokenizers.py -k own_texts",
    ),
    Fault(
        "a pair of texts has few subwords", "training/tokenizers.py",
        " and task.two_texts is None  #", "  #",
        "tests/unit/test_choosing_tokenizers.py -k pairs_keep",
    ),
    Fault(
        "much data has the small batches of none", "training/sizing.py",
        "most = _MOST_TOKENS // config.world_size", "most = None",
        "tests/unit/test_sizing.py -k not_kept",
    ),
    Fault(
        "records of a task of one's own have sources and targets", "training/tokenizers.py",
        "fields if all(field in task.schema for field in fields) else ()", "fields",
        "tests/unit/test_choosing_tokenizers.py -k own_fields",
    ),
    Fault(
        "the tokenizer that is named is not taken", "training/tokenizers.py",
        'name = config.tokenizer or "bpe"', 'name = "bpe"',
        "tests/unit/test_choosing_tokenizers.py -k is_said",
    ),
    Fault(
        "examples that are short and few fill a batch or two", "training/sizing.py",
        "min(_MOST_ROWS, most, round(wanted / row_tokens))", "round(wanted / row_tokens)",
        "tests/unit/test_sizing.py -k small_batches",
    ),
    Fault(
        "a text too large to be read for its tokenizer has a small one", "training/tokenizers.py",
        "ids = None if sample.cut else found", "ids = found",
        "tests/unit/test_sizing.py -k tells_nothing",
    ),
    Fault(
        "a batch is told before another is found", "training/sizing.py",
        "if config.find_batch_size:", "if False:",
        "tests/unit/test_sizing.py -k given_of_them",
    ),
    Fault(
        "windows count as the documents in them", "data/packing.py",
        "        return self.seq_len\n", "        return pool.lengths(\"ids\").mean()\n",
        "tests/unit/test_sizing.py -k chooses_batches",
    ),
    Fault(
        "batches of a language model are advised on, too", "data_command.py",
        'if not registry.get("task", name).learns_each_token:', "if True:",
        "tests/unit/test_data_check.py -k left_to_the_run",
    ),
    Fault(
        "a sample of text that is read again ends at once", "data/tokenizer_training.py",
        "        self.size, self.cut = 0, False\n        for", "        for",
        "tests/unit/test_tokenizer.py -k what_is_large",
    ),
    Fault(
        "what is read of pairs is not counted", "training/sizing.py",
        '"ids", "inputs", "source", "labels"', '"ids", "inputs", "labels"',
        "tests/e2e/test_tasks.py -k translate_and_says",
    ),
    Fault(
        "a sample has a seed where beams leave nothing to chance", "training/samples.py",
        "0 if default.num_beams == 1 else None", "0",
        "tests/e2e/test_tasks.py -k translate_and_says",
    ),
    Fault(
        "an error from another process is its message alone", "config/errors.py",
        "    def __reduce__(", "    def reduced(",
        "tests/unit/test_config.py -k another_process",
    ),
    Fault(
        "validation searches as a test does", "tasks/seq2seq.py",
        "self.generated - served, GenerationConfig())",
        "self.generated - served, GenerationConfig(num_beams=self.num_beams))",
        "tests/unit/test_tasks.py -k 'what_a_validation_writes'",
    ),
    Fault(
        "Ctrl-C ends a run before its last step is noted", "training/parts.py",
        "self.keep, self.averaging, self.states, self.interrupt,",
        "self.keep, self.averaging, self.interrupt, self.states,",
        "tests/e2e/test_resume.py -k while_a_step_is_learnt",
    ),
    Fault(
        "the vocabulary is made anew for each text", "data/tokenizer.py",
        "@cached_property\n    def vocab_size", "@property\n    def vocab_size",
        "tests/unit/test_tokenizer.py -k asked_once",
    ),
    Fault(
        "a guessed token is always hidden", "tasks/masked_lm.py",
        "np.where(way < _HIDDEN, mask, ", "np.where(way < 1, mask, ",
        "tests/unit/test_masked_lm.py -k eight_of_ten",
    ),
    Fault(
        "the boundary is guessed", "tasks/masked_lm.py",
        "open_ = ~np.isin(inputs, special)", "open_ = inputs >= 0",
        "tests/unit/test_masked_lm.py -k a_share_of_each_text",
    ),
    Fault(
        "only the first piece of a long text is read", "tasks/masked_lm.py",
        "yield from np.array_split(whole, max(1, -(-len(whole) // seq_len)))",
        "yield whole[:seq_len]",
        "tests/unit/test_masked_lm.py -k read_in_pieces",
    ),
    Fault(
        "rare classes weigh as much as others", "tasks/classification.py",
        "[whole / (len(classes) * counts[each]) for each in classes]", "[1.0] * len(classes)",
        "tests/unit/test_tasks.py -k formula",
    ),
    Fault(
        "classification is smoothed in validation, too", "tasks/classification.py",
        "self.label_smoothing if model.training else 0.0", "self.label_smoothing",
        "tests/unit/test_tasks.py -k smoothed",
    ),
    Fault(
        "a little more data has the largest model", "config/presets.py",
        "if tokens < limit), \"base\")", "if tokens < limit / 2), \"base\")",
        "tests/unit/test_sizing.py -k larger_model",
    ),
    Fault(
        "a run does not begin with its warm start", "training/run.py",
        "new = take_weights(run.model, result.model, run.kind)", 'new = ["head"]',
        "tests/e2e/test_resume.py -k begins_with_its_warm_start",
    ),
    Fault(
        "a warm start has the dropout of what follows", "training/warming.py",
        '{**shape, **given["model_config"]}', "shape",
        "tests/e2e/test_resume.py -k settings_of_its_own",
    ),
    Fault(
        "a warm start of pairs knows no marks", "training/warming.py",
        '"mark_shared": task.marks(),', '"mark_shared": False,',
        "tests/e2e/test_resume.py -k marks_mean",
    ),
    Fault(
        "a warm start may be of another shape", "training/warming.py",
        'others = [name for name in given["model_config"] if name not in _OF_LEARNING]',
        "others = []",
        "tests/e2e/test_resume.py -k warm_start_that_is_wrong",
    ),
    Fault(
        "a warm start begins anew each time", "training/warming.py",
        "    if state is not None:\n", "    if state is not None and False:\n",
        "tests/e2e/test_resume.py -k 'warm_start_that_is_killed'",
    ),
    Fault(
        "after a warm start chance goes on where it was", "training/run.py",
        "L.seed_everything(run.config.seed, verbose=False)  # as after", "pass  # as after",
        "tests/e2e/test_resume.py -k 'warm_start_that_is_killed'",
    ),
    Fault(
        "an undone merge leaves its token", "data/subwords.py",
        "self.first[split], self.second[split]", "split, self.second[split]",
        "tests/unit/test_subwords.py -k spell",
    ),
    Fault(
        "merges within an undone merge stay", "data/subwords.py",
        "places.repeat(counts), chosen.repeat(counts)",
        "places.repeat(counts), np.zeros(counts.sum(), dtype=bool)",
        "tests/unit/test_subwords.py -k chance_that_was_asked",
    ),
    Fault(
        "merges are undone in validation", "data/subwords.py",
        "    if random is None:\n        return collate(examples, random)\n",
        "    random = random or np.random.default_rng(0)\n",
        "tests/unit/test_subwords.py -k other_splits",
    ),
    Fault(
        "token types do not move with their tokens", "data/subwords.py",
        "example[other][places] for other in beside",
        "np.resize(example[other], len(ids)) for other in beside",
        "tests/unit/test_subwords.py -k token_types",
    ),
    Fault(
        "the largest of a row is that of its padding, too", "model/head.py",
        "highest = features.masked_fill(~real, -torch.inf).amax(1)",
        "highest = (features * real).amax(1)",
        BATTERY + " -k a_sequence_as_one_vector",
    ),
    Fault(
        "the repetition penalty makes unlikely tokens likelier", "generation/processors.py",
        "torch.where(logits > 0, logits / penalty, logits * penalty)", "logits / penalty",
        "tests/unit/test_processors.py -k repetition",
    ),
    Fault(
        "penalties count the prompt", "generation/processors.py",
        "written = counts(tokens[:, prompt_length:], logits)", "written = counts(tokens, logits)",
        "tests/unit/test_processors.py -k frequency",
    ),
    Fault(
        "a bad run is forbidden wherever its end is", "generation/processors.py",
        "torch.where(same, end, -1)", "torch.full_like(tokens[:, 0], end)",
        "tests/unit/test_processors.py -k bad_runs",
    ),
    Fault(
        "logits that are no numbers are chosen from", "generation/processors.py",
        "if not bool(largest.isfinite().all()):", "if False:",
        "tests/unit/test_processors.py -k no_numbers",
    ),
    Fault(
        "min-p is of the whole, not of the likeliest", "generation/sampling.py",
        "options.min_p * probabilities.amax(-1, keepdim=True)", "options.min_p",
        "tests/unit/test_processors.py -k min_p",
    ),
    Fault(
        "rows that have ended go on", "generation/decoding.py",
        "rows, texts = [rows[place] for place in kept],", "rows, texts = rows[: len(kept)],",
        "tests/unit/test_processors.py -k no_longer_cost",
    ),
    Fault(
        "log-probabilities are those of what was left to sample", "generation/decoding.py",
        "    logits = logits.float()\n    found", "    logits = logits.float() * 1.1\n    found",
        "tests/unit/test_processors.py -k log_probabilities",
    ),
    Fault(
        "groups of beams do not see one another", "generation/beam.py",
        "self._advance(rows, totals[rows] - penalty)", "self._advance(rows, totals[rows])",
        "tests/unit/test_beam.py -k groups",
    ),
    Fault(
        "shared tokens are marked in the first text only", "tasks/tokens.py",
        "types += 2 * np.isin(row, both).astype(np.uint8)",
        "types += 2 * (np.isin(row, both) & (types == 0)).astype(np.uint8)",
        "tests/unit/test_tasks.py -k shared",
    ),
    Fault(
        "rows change places but their keys do not", "model/cache_storage.py",
        "for tensor in self.used(length).values():", "for tensor in self.used(0).values():",
        "tests/unit/test_cache.py -k change_places",
    ),
    Fault(
        "rows that are taken out leave their keys to the others", "model/cache_storage.py",
        "chosen[:, :, : used.shape[2]] = used[rows]",
        "chosen[:, :, : used.shape[2]] = used[: len(rows)]",
        "tests/unit/test_cache.py -k taken_out",
    ),
    Fault(
        "a guess is kept whatever the model thinks", "generation/speculation.py",
        "if p >= q or float(", "if True or float(",
        "tests/unit/test_speculation.py -k greedy",
    ),
    Fault(
        "what is left is drawn as if nothing had been guessed", "generation/speculation.py",
        "allowed = rest if bool(rest.sum() > 0) else allowed", "pass",
        "tests/unit/test_speculation.py -k distribution",
    ),
    Fault(
        "wrong guesses stay in the cache", "generation/speculation.py",
        "begun.cache.trim(len(text) - 1)", "pass",
        "tests/unit/test_speculation.py -k greedy",
    ),
    Fault(
        "the last tokens are looked up and found at the end", "generation/speculation.py",
        "runs = tokens.unfold(0, size, 1)[:-1]", "runs = tokens.unfold(0, size, 1)",
        "tests/unit/test_speculation.py -k looked_up",
    ),
    Fault(
        "a window scores what another has scored", "tasks/scoring.py",
        "first, end = end + 1, min(end + stride, length - 1)",
        "first, end = end + (end == length - 1), min(end + stride, length - 1)",
        "tests/unit/test_scoring.py -k scored_once",
    ),
    Fault(
        "the harness is told that any answer is greedy", "interop/lm_eval.py",
        "all(each.greedy)",
        "any(each.greedy) or True",
        "tests/unit/test_lm_eval.py -k whether_it_is_greedy",
    ),
    Fault(
        "the harness's spaces after a context are part of it", "interop/lm_eval.py",
        'context.rstrip(" ")',
        "context",
        "tests/unit/test_lm_eval.py -k whether_it_is_greedy",
    ),
    Fault(
        "the harness's stops are forgotten", "interop/lm_eval.py",
        '[until] if isinstance(until, str)',
        'None if isinstance(until, str)',
        "tests/unit/test_lm_eval.py -k up_to_a_stop",
    ),
    Fault(
        "a token is scored by what comes after it", "tasks/scoring.py",
        "firsts = [first - begin - 1 for", "firsts = [first - begin for",
        "tests/unit/test_scoring.py -k scored_once",
    ),
    Fault(
        "an answer may end before it is whole", "generation/constraint.py",
        "allowed[self.ends] = allowed[self.ends[0]]", "allowed[self.ends] = True",
        "tests/unit/test_constraint.py -k regular_expression",
    ),
    Fault(
        "rows keep to the form of their neighbours", "generation/constraint.py",
        "found.get(text) or known.get(text) or self._after(text, known)",
        "next(iter(found.values()), None) or known.get(text) or self._after(text, known)",
        "tests/unit/test_constraint.py -k regular_expression",
    ),
    Fault(
        "an answer that is not whole is given", "tasks/writing.py",
        "if form is not None and not form.complete(tokens):", "if False:",
        "tests/unit/test_constraint.py -k not_whole",
    ),
    Fault(
        "a byte is taken for another", "data/tokenizer.py",
        "*range(174, 256)]", "*range(175, 256)]",
        "tests/unit/test_constraint.py -k 'regular_expression or guesses'",
    ),
    Fault(
        "all rows forget when one has to", "generation/decoding.py",
        "torch.where(full, self.length - half(self.longest), self.first)",
        "torch.full_like(self.first, self.length - half(self.longest))",
        "tests/unit/test_sampling.py -k oldest",
    ),
    Fault(
        "keys are turned by the angles of halves, queries are not", "model/native/kernels.cpp",
        "turn(queries + h * E, cosine, sine, half);", "turn(queries + h * E, cosine, sine, 0);",
        "tests/unit/test_native.py -k 'llama and even'",
    ),
    Fault(
        "padding in the cache is read by the kernels", "model/native/kernels.cpp",
        "return place >= 0 && (!a.window", "return (!a.window",
        "tests/unit/test_native.py -k 'llama and ragged'",
    ),
    Fault(
        "sums of unsigned weights are taken up, not down", "model/native/functions.h",
        "shifts[g] -= 128 * q[i]", "shifts[g] += 128 * q[i]",
        "tests/unit/test_native.py -k smaller_weights",
    ),
    Fault(
        "rows that go through a matrix together have one scale", "model/native/products.h",
        "in.scales + first * (n / GROUP)", "in.scales",
        "tests/unit/test_native.py -k rows_together",
    ),
    Fault(
        "four bits have no -8", "model/native/panels.py",
        "clamp(-8, 7)", "clamp(-7, 7)",
        "tests/unit/test_native.py -k four_bits",
    ),
    Fault(
        "the last of the scales that are tried is taken", "model/native/panels.py",
        "torch.where(better, tried, best)", "tried",
        "tests/unit/test_native.py -k four_bits",
    ),
    Fault(
        "of a matrix's columns an odd one is left out", "model/native/products.h",
        "    for (; i < n; i++)\n        for (int b", "    for (; i + 1 < n; i++)\n        for (int b",
        "tests/unit/test_native.py -k 'odd and even'",
    ),
    Fault(
        "a bias is added to the first rows alone", "model/native/products.h",
        "numbers[i] += w.bias[p * PANEL + i]", "numbers[i] += w.bias[i]",
        "tests/unit/test_native.py -k 'gpt2 and even'",
    ),
    Fault(
        "a block of a matrix is that of the first panels", "model/native/products.h",
        "panel(w, p, next, some, many, out);", "panel(w, p - from, next, some, many, out);",
        "tests/unit/test_native.py -k 'many and even'",
    ),
    Fault(
        "the end of a head is not weighed", "model/native/products.h",
        "for (; i < width; i++) {", "for (; i + 8 < width; i++) {",
        "tests/unit/test_native.py -k 'odd and even'",
    ),
    Fault(
        "the end of a head does not count in its scores", "model/native/products.h",
        "for (int j = i; j < width; j++)", "for (int j = i; j < width - 1; j++)",
        "tests/unit/test_native.py -k 'odd and even'",
    ),
    Fault(
        "an exponential forgets its power of two", "model/native/functions.h",
        "x < -87.3f ? 0.0f : series * power", "x < -87.3f ? 0.0f : series",
        "tests/unit/test_native.py -k 'llama and even'",
    ),
    Fault(
        "a number that is none is quantised to one", "model/native/functions.h",
        "any ? NAN : all / 127.0f", "all / 127.0f",
        "tests/unit/test_native.py -k not_finite",
    ),
    Fault(
        "what comes later is never likelier", "model/native/kernels.cpp",
        "<= log_p[many - 1]) continue;", "<= INFINITY) continue;",
        "tests/unit/test_native.py -k likeliest",
    ),
    Fault(
        "a prompt's tokens see those that come after them", "model/native/kernels.cpp",
        "columns = column_of(b) + 1;", "columns = s.columns;",
        "tests/unit/test_native.py -k 'read_as_by and llama'",
    ),
    Fault(
        "a prompt's logits are those of its first tokens", "model/native/kernels.cpp",
        "x + s.wanted[b] * m.width, m.width", "x + b * m.width, m.width",
        "tests/unit/test_native.py -k 'read_as_by and llama'",
    ),
    Fault(
        "a source is that of another row", "model/native/kernels.cpp",
        "source = b / s.rows_per_source", "source = b % s.rows_per_source",
        "tests/unit/test_native.py -k sources_are_shared",
    ),
    Fault(
        "the last key stays with its row", "model/native/steps.py",
        "columns = self._key_rows[:, : self.cache.length]",
        "columns = self._key_rows[:, : self.cache.length - 1]",
        "tests/unit/test_native.py -k exchange_places",
    ),
    Fault(
        "keys of other rows are left there", "model/native/steps.py",
        "kept[:, :, : len(columns)] = found.transpose(1, 2)", "found.transpose(1, 2)",
        "tests/unit/test_native.py -k exchange_places",
    ),
    Fault(
        "threads of PyTorch run beside those of the kernels", "model/native/threads.py",
        "library.omp_set_num_threads(1)", "library.omp_set_num_threads(before)",
        "tests/unit/test_native.py -k leaves_their_cores",
    ),
    Fault(
        "a recorded step always fills the same column", "model/graphs.py",
        "self.column.fill_(self.cache.start)", "pass",
        "tests/unit/test_graphs.py",
    ),
    Fault(
        "a recorded step counts its own column", "model/graphs.py",
        "positions.index_fill_(1, self.column, -1)", "pass",
        "tests/unit/test_graphs.py",
    ),
    Fault(
        "recorded steps see where columns were before beams changed places", "model/cache.py",
        "kept.copy_(kept[rows])", "pass",
        "tests/unit/test_cache.py tests/unit/test_graphs.py",
    ),
    Fault(
        "other rows go on with a recording of those before", "generation/decoding.py",
        "self.first, self.steps = self.first[rows], None", "self.first = self.first[rows]",
        "tests/unit/test_graphs.py",
    ),
    Fault(
        "weights lie over each other", "model/native/memory.py",
        "// _ALIGNED) * _ALIGNED", "// _ALIGNED) * 0",
        "tests/unit/test_native.py -k side_by_side",
    ),
    Fault(
        "an engine keeps weights that have changed", "model/native/engine.py",
        "known[0] == now and why_not(model) is None", "True",
        "tests/unit/test_native.py -k follow",
    ),
    Fault(
        "more threads are taken for faster", "model/native/tuning.py",
        "duel.least[duel.many] <= duel.least[duel.few]", "True",
        "tests/unit/test_native.py -k threads_are_as_many",
    ),
    Fault(
        "a choice of threads is for ever", "model/native/tuning.py",
        "if duel.steps == _KEPT:", "if False:",
        "tests/unit/test_native.py -k threads_are_as_many",
    ),
    Fault(
        "an engine keeps its model", "model/native/engine.py",
        "self._stack = weakref.ref(stack)", "self._stack = lambda: stack",
        "tests/unit/test_native.py -k goes_with",
    ),
    Fault(
        "text that is written is of no type", "model/native/weights.py",
        "vectors, scale = vectors * scale + kinds.weight[0], 1.0", "pass",
        "tests/unit/test_native.py -k types",
    ),
    Fault(
        "hooks are passed over", "model/native/weights.py",
        "if module._forward_hooks or module._forward_pre_hooks:", "if False:",
        "tests/unit/test_native.py -k 'left_to_the_model'",
    ),
    Fault(
        "other weights than were asked for, without a word", "model/native/engine.py",
        'if weights != "float32":', "if False:",
        "tests/unit/test_native.py -k 'left_to_the_model'",
    ),
    Fault(
        "rows that were taken out are still read by the kernels", "generation/decoding.py",
        "self.first, self.steps = self.first[rows], None", "self.first = self.first[rows]",
        "tests/unit/test_native.py tests/unit/test_processors.py -k 'with_and_without or no_longer'",
    ),
]  # fmt: skip


class Failures:
    """A pytest plugin: the tests that ran and failed."""

    def __init__(self):
        self.names = []

    def pytest_runtest_logreport(self, report):
        if report.failed and report.when == "call":
            self.names.append(report.nodeid)


def run(tests, package):
    """pytest's result for tests against the package in a folder, in a process of its own.

    Returns its exit code, the tests that failed, and the end of what it printed.
    """
    import pytest

    os.chdir(ROOT)
    sys.path[:0] = [str(package), str(ROOT)]
    os.environ["PYTHONPATH"] = str(package)  # of the programs that tests start
    failures = Failures()
    printed = printed_of(package)
    with printed.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "--hypothesis-profile=unshrunk",
            f"--basetemp={package}.tmp",  # two at a time would tidy up each other's
        ]
        code = pytest.main([*options, *tests], [failures])
        sys.stdout.flush()
    return int(code), failures.names, printed.read_text(errors="replace")[-2000:]


def printed_of(package):
    """The file of what is printed by tests against the package in a folder."""
    return Path(f"{package}.txt")


def check(fault, place):
    """Runs a fault's tests against a copy of the package that has it.

    Returns the test that failed, or None, and what is wrong if none did.
    """
    shutil.copytree(ROOT / "src", place)
    path = place / "miniformer" / fault.file
    source = path.read_text(encoding="utf-8")
    if source.count(fault.right) != 1:
        return None, f"fits {source.count(fault.right)} places of {fault.file}, not one"
    path.write_text(source.replace(fault.right, fault.wrong), encoding="utf-8")
    code, failed, printed = run(["-x", *shlex.split(fault.tests)], place)
    if code == 1 and failed:  # tests ran, and one failed
        return failed[0], None
    return None, f"not caught by {fault.tests} (pytest's exit code {code})\n{printed[-800:]}"


def alone(function, *given):
    """A function's result, from a process of its own; a RuntimeError if that dies."""
    mine, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=send, args=(theirs, function, *given))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process died (exit code {process.exitcode})") from None
    finally:
        process.join()


def send(pipe, function, *given):
    """Gives a function's result to the other end of a pipe."""
    gc.freeze()  # what was imported before is not looked through at every test's end
    pipe.send(function(*given))


def judge(fault, place):
    """As `check`, in a process of its own: a fault that kills it is not caught, but is told."""
    try:
        return alone(check, fault, place)
    except RuntimeError as error:
        printed = printed_of(place)
        end = printed.read_text(errors="replace")[-800:] if printed.exists() else ""
        return None, f"{error}\n{end}"


def main():
    """Checks faults, two at a time; the exit code."""
    words = [word for word in sys.argv[1:] if word != PASSED]
    chosen = [f for f in FAULTS if not words or any(word in f.name for word in words)]
    os.environ["OMP_NUM_THREADS"] = "1"
    # Each process is fresh, with what takes seconds to import imported already.
    PROCESSES.set_forkserver_preload(IMPORTED)
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        places = [Path(folder) / str(number) for number in range(len(chosen))]
        caught = set()
        missed = 0
        for fault, (test, problem) in zip(chosen, threads.map(judge, chosen, places), strict=True):
            missed += problem is not None
            print(f"{'caught' if problem is None else 'MISSED':<8}{fault.name}", flush=True)
            if problem is None:
                caught.add(test)
            else:
                print(f"        {problem}", flush=True)
        print(f"{len(chosen) - missed} of {len(chosen)} faults are caught")
        if missed or not chosen:
            return 1
        if PASSED not in sys.argv:
            sound = Path(folder) / "sound"
            shutil.copytree(ROOT / "src", sound)
            code, _, printed = alone(run, sorted(caught), sound)
            if code != 0:
                print(f"UNSOUND: tests fail without a fault, too\n{printed}")
                return 1
            print(f"and the {len(caught)} tests that caught them pass without a fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
