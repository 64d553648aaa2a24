"""Continuous batching: sequences join and leave a running decode.

A `SlotDecoder` has a number of slots. `add` prefills a prompt alone and inserts its row into the
cache of the others, `step` decodes a token of every sequence, and `remove` frees a slot. Each
sequence has its own options and gets the tokens that it would get alone.

Letters: R rows of the runtime, each with a sequence or free; V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.generation.api import (
    GenerationInput,
    GenerationOutput,
    pad_inputs,
    require_single,
)
from miniformer.generation.encoding import EncoderCache, encode_sources
from miniformer.generation.inputs import check_prompts
from miniformer.generation.logits_processors import (
    Processor,
    apply_processors,
    build_processors,
    check_finite,
)
from miniformer.generation.loop import StopFn, token_logprobs
from miniformer.generation.runtime import Runtime, make_runtime
from miniformer.generation.sampling import row_uniforms, sample_next_token
from miniformer.generation.slot_sequence import PendingPrompt, SlotSequence, SlotToken

_RUNTIME_OPTIONS = ("weight_dtype", "cache_kind", "cuda_graph")  # equal for all sequences
_MIN_WASTED_COLUMNS = 32  # of a cache that is compacted before it is full


class SlotDecoder:
    """Decodes up to `num_slots` sequences at once, which come and go at any time.

    Not for use from several threads at once.

    Args:
        model: causal Transformer or Seq2SeqTransformer in eval mode.
        options: default options of sequences. `weight_dtype`, `cache_kind` and `cuda_graph` are
            those of all sequences.
        num_slots: maximum number of sequences at once.
        capacity: maximum length of a prompt with its new tokens; None: `max_seq_len`. The cache has
            this many columns for each row.
        return_logprobs: compute log-probabilities.
        encoder_cache: encoder outputs, of sources that come again; None: each one is encoded.

    Raises:
        UserError: the model is in training mode, or a size is invalid.
    """

    def __init__(
        self,
        model: Any,
        options: GenerationConfig | None = None,
        *,
        num_slots: int = 8,
        capacity: int | None = None,
        return_logprobs: bool = False,
        encoder_cache: EncoderCache | None = None,
    ) -> None:
        max_seq_len = model.config.max_seq_len
        self.model, self.options = model, options or GenerationConfig()
        self.num_slots, self.capacity = num_slots, capacity or max_seq_len
        self.return_logprobs, self.encoder_cache = return_logprobs, encoder_cache
        if any(module.training for module in model.modules()):
            raise UserError(
                "a model in training mode cannot be decoded in slots; call eval() on it"
            )
        if num_slots < 1:
            raise UserError(f"num_slots must be at least 1, not {num_slots}")
        if not 1 <= self.capacity <= max_seq_len:
            raise UserError(
                f"capacity must be from 1 to max_seq_len={max_seq_len}, not {self.capacity}"
            )
        self._sequences: dict[int, SlotSequence] = {}  # by slot
        self._rows: list[SlotSequence | None] = []  # of the runtime; None or finished: free
        self._runtime: Runtime | None = None  # None: no unfinished sequence
        self._logits = torch.empty(0)  # of the next token, [R, V]
        self._next: Tensor | None = None  # new tokens that are not in the cache yet, int [R]

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return self.num_slots - len(self._sequences)

    @property
    def num_unfinished(self) -> int:
        """Number of sequences that `step` continues."""
        return sum(not item.finished for item in self._sequences.values())

    @torch.inference_mode()
    def add(
        self,
        inputs: GenerationInput | Sequence[int],
        options: GenerationConfig | None = None,
        *,
        index: int = 0,
        copy: int = 0,
        processors: Sequence[Processor] = (),
        stop_fn: StopFn | None = None,
        num_top: int = 0,
    ) -> int:
        """Prefills a prompt, and inserts it between the steps of the others.

        Args:
            inputs: prompt, or for an encoder-decoder model prompt and source.
            options: decoding options; None: those of the decoder.
            index, copy: indices of the prompt and of its continuation, which together with the seed
                determine the samples, as those of `generate`.
            processors: custom processors; see `miniformer.generation.logits_processors`.
            stop_fn: stop condition on the new tokens, in addition to EOS.
            num_top: number of most likely tokens to return with each token.

        Returns:
            The slot, from 0 to `num_slots` - 1.

        Raises:
            UserError: no slot is free, or see `Transformer.generate`.
        """
        prompt = self.start(
            inputs, options, index=index, copy=copy, processors=processors, stop_fn=stop_fn,
            num_top=num_top,
        )  # fmt: skip
        return self.insert(prompt)

    @torch.inference_mode()
    def start(
        self,
        inputs: GenerationInput | Sequence[int],
        options: GenerationConfig | None = None,
        *,
        index: int = 0,
        copy: int = 0,
        processors: Sequence[Processor] = (),
        stop_fn: StopFn | None = None,
        num_top: int = 0,
        chunk: int | None = None,
    ) -> PendingPrompt:
        """Begins the prefill of a prompt, which `PendingPrompt.advance` and `insert` continue.

        Args:
            inputs, options, index, copy, processors, stop_fn, num_top: see `add`.
            chunk: prompt tokens of a call of `advance`; None: all.

        Raises:
            UserError: see `add`.
        """
        options = self.options if options is None else options
        item = inputs if isinstance(inputs, GenerationInput) else GenerationInput(inputs)
        batch = pad_inputs([item])
        self._check(batch.ids.shape[1], options)
        check_prompts(self.model.config, batch, options)
        all_processors = build_processors(options, batch.ids.shape[1], processors)
        batch = batch.to(next(self.model.parameters()).device)
        memory = encode_sources(self.model, batch, self.encoder_cache)
        runtime = make_runtime(self.model, memory, options)
        uniform = row_uniforms(options, [(index, copy)], batch.ids.device)
        sequence = SlotSequence(
            -1, options, all_processors, stop_fn, None if uniform is None else uniform[0],
            batch.ids[0].tolist(), num_top=num_top,
        )  # fmt: skip
        return PendingPrompt(sequence, runtime, batch.ids, self.capacity, chunk)

    @torch.inference_mode()
    def insert(self, prompt: PendingPrompt) -> int:
        """Completes the prefill of a prompt, and inserts it between the steps of the others.

        Returns:
            The slot, from 0 to `num_slots` - 1.

        Raises:
            UserError: no slot is free.
        """
        self._require_free()
        while not prompt.advance():
            pass
        sequence = prompt.sequence
        sequence.slot = next(n for n in range(self.num_slots) if n not in self._sequences)
        self._advance()
        self._insert(sequence, prompt.runtime, prompt.logits)
        self._sequences[sequence.slot] = sequence
        return sequence.slot

    @torch.inference_mode()
    def step(self) -> list[SlotToken]:
        """Decodes the next token of each unfinished sequence; returns them by slot.

        Raises:
            UserError: logits are not finite, or no token is allowed.
        """
        self._advance()
        unfinished = self._unfinished_rows()
        if self._runtime is None or not unfinished:
            return []
        rows, sequences = [*unfinished], [*unfinished.values()]
        logits = self._logits if len(rows) == len(self._logits) else self._logits[rows]
        with self._runtime.exclusive_threads():
            token, logprobs = self._sample(sequences, logits)
        self._next = torch.zeros(len(self._logits), dtype=torch.long, device=token.device)
        self._next[rows] = token
        steps = []
        for n, (item, new) in enumerate(zip(sequences, token.tolist(), strict=True)):
            item.add_token(new)
            item.logprobs += logprobs[n : n + 1]
            logprob = item.logprobs[-1] if logprobs else None
            steps.append(SlotToken(item.slot, new, logprob, item.finished, item.top))
        return sorted(steps)

    def remove(self, slot: int) -> GenerationOutput:
        """Frees a slot, of a finished sequence or not; returns its tokens so far.

        Raises:
            UserError: the slot is free.
        """
        if slot not in self._sequences:
            raise UserError(f"slot {slot} is free; in use: {sorted(self._sequences) or 'none'}")
        item = self._sequences.pop(slot)
        item.finished = True
        return GenerationOutput.from_tokens(item.tokens, item.logprobs, item.options.eos_token_ids)

    def _check(self, length: int, options: GenerationConfig) -> None:
        """Raises UserError for a prompt of `length` tokens that no slot can take."""
        self._require_free()
        for name in ("num_beams", "num_return_sequences"):
            require_single(options, name, "decoded in slots")
        if options.context_shift:
            raise UserError("context_shift cannot be decoded in slots; leave it out")
        for name in _RUNTIME_OPTIONS:
            value, common = (getattr(item, name) for item in (options, self.options))
            if value != common:
                raise UserError(f"{name}={value} of a sequence, but {common} of the SlotDecoder")
        if length + options.max_new_tokens > self.capacity:
            raise UserError(
                f"a prompt of {length} tokens and max_new_tokens={options.max_new_tokens} exceed "
                f"the capacity of {self.capacity}; shorten one, or raise the capacity"
            )

    def _require_free(self) -> None:
        if not self.num_free:
            raise UserError(
                f"all {self.num_slots} slots are in use; remove a sequence, or raise num_slots"
            )

    def _insert(self, item: SlotSequence, runtime: Runtime, logits: Tensor) -> None:
        """Gives a sequence a row; `runtime` and `logits`, [1, V], are those after its prefill."""
        if self._runtime is None:
            self._runtime, self._rows, self._logits = runtime, [item], logits
            return
        num_rows, unfinished = len(self._rows), self._unfinished_rows()
        if len(unfinished) == num_rows:  # doubled, so that a row is rarely copied
            copies = range(num_rows, min(2 * num_rows, self.num_slots))
            self._select([*range(num_rows), *(num_rows - 1 for _ in copies)])
            self._rows[num_rows:] = [None for _ in copies]
        row = next(n for n in range(len(self._rows)) if n not in unfinished)
        index = torch.tensor([row], device=logits.device)
        self._runtime.insert(index, runtime)
        self._rows[row] = item
        self._logits = self._logits.index_copy(0, index, logits.to(self._logits.dtype))

    def _advance(self) -> None:
        """Appends the new tokens to the cache, and computes the next logits."""
        if self._next is None or self._runtime is None:
            return
        unfinished = self._unfinished_rows()
        if not unfinished:
            self._runtime, self._next, self._rows = None, None, []
            return
        tokens, self._next = self._next, None
        if len(unfinished) <= len(self._rows) // 4:
            tokens = tokens[[*unfinished]]
            self._select([*unfinished])
            unfinished = self._unfinished_rows()
        longest = max(item.cached_length for item in unfinished.values())
        wasted = self._runtime.num_columns - longest
        if self._runtime.is_full or wasted > longest + _MIN_WASTED_COLUMNS:
            finished = torch.ones(len(self._rows), dtype=torch.bool, device=tokens.device)
            finished[[*unfinished]] = False
            self._runtime.compact(finished)
        self._logits = self._runtime.step(tokens)

    def _unfinished_rows(self) -> dict[int, SlotSequence]:
        """Unfinished sequences by their rows, in ascending order."""
        return {
            row: item
            for row, item in enumerate(self._rows)
            if item is not None and not item.finished
        }

    def _select(self, rows: list[int]) -> None:
        """Selects rows of the runtime, which may repeat."""
        assert self._runtime is not None
        index = torch.tensor(rows, device=self._logits.device)
        self._runtime.select(index)
        self._logits, self._rows = self._logits[index], [self._rows[row] for row in rows]

    @staticmethod
    def _set_top(sequences: Sequence[SlotSequence], logits: Tensor) -> None:
        """Sets the most likely tokens of the sequences that ask for them; `logits`: [rows, V]."""
        for row, item in enumerate(sequences):
            if item.num_top:
                values, ids = logits[row].float().log_softmax(-1).topk(item.num_top)
                item.top = [*zip(ids.tolist(), values.tolist(), strict=True)]

    def _sample(
        self, sequences: Sequence[SlotSequence], logits: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Samples a token of each sequence, int [rows]; also returns log-probabilities, if any.

        Args:
            sequences: unfinished sequences.
            logits: their logits, [rows, V].
        """
        assert self._runtime is not None
        self._set_top(sequences, logits)
        step = 1 + max(len(item.tokens) for item in sequences)
        is_greedy = all(item.uniform is None and not item.processors for item in sequences)
        if is_greedy and self._runtime.fuses_top_logprobs:
            top, token = (x[:, 0] for x in self._runtime.top_logprobs(logits, 1))
            check_finite(top, step)
            return token, top.tolist() if self.return_logprobs else []
        check_finite(logits.amax(-1), step)
        processed, groups = logits, defaultdict[Any, list[int]](list)
        for row, item in enumerate(sequences):
            if item.processors:
                tokens = torch.tensor([item.prompt + item.tokens], device=logits.device)
                changed = apply_processors(
                    item.processors, tokens, logits[row : row + 1], 1 + len(item.tokens)
                )
                if processed is logits:
                    processed = logits.float().clone()
                processed[row] = changed[0]
            options = item.options
            groups[options.temperature, options.top_k, options.top_p, options.min_p].append(row)
        token = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        for rows in groups.values():
            numbers = [
                item.uniform[len(item.tokens)]
                for item in (sequences[row] for row in rows)
                if item.uniform is not None
            ]
            uniform = torch.stack(numbers) if numbers else None
            options = sequences[rows[0]].options
            token[rows] = sample_next_token(processed[rows], options, uniform)
        return token, token_logprobs(logits, token) if self.return_logprobs else []
