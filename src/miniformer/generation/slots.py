"""Continuous batching: sequences join and leave a running decode.

A `SlotDecoder` has a number of slots. `add` gives a sequence a slot, `step` reads its prompt beside
the decoding of the others and decodes a token of every sequence, and `remove` frees a slot. Each
sequence has its own options and gets the tokens that it would get alone.

Letters: V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
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
from miniformer.generation.runtime import make_runtime
from miniformer.generation.sampling import row_uniforms, sample_next_token
from miniformer.generation.slot_engine import RowEngine, SlotEngine
from miniformer.generation.slot_sequence import SlotSequence, SlotToken

_RUNTIME_OPTIONS = ("weight_dtype", "cache_kind", "cuda_graph")  # equal for all sequences
ErrorFn = Callable[[int, UserError], None]  # slot of a sequence, why it cannot continue


class SlotDecoder:
    """Decodes up to `num_slots` sequences at once, which come and go at any time.

    Not for use from several threads at once. The decoding kernels give a sequence the same tokens
    whatever the others are, bit for bit; other runtimes, up to rounding.

    Args:
        model: causal Transformer or Seq2SeqTransformer in eval mode.
        options: default options of sequences. `weight_dtype`, `cache_kind` and `cuda_graph` are
            those of all sequences.
        num_slots: maximum number of sequences at once.
        capacity: maximum length of a prompt with its new tokens; None: `max_seq_len`. The cache has
            this many columns for each slot.
        return_logprobs: compute log-probabilities.
        encoder_cache: encoder outputs, of sources that come again; None: each one is encoded.
        on_error: called for a sequence that cannot continue, which is then finished; the others
            are not affected. None: `step` raises the error.

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
        on_error: ErrorFn | None = None,
    ) -> None:
        max_seq_len = model.config.max_seq_len
        self.model, self.options = model, options or GenerationConfig()
        self.num_slots, self.capacity = num_slots, capacity or max_seq_len
        self.return_logprobs, self.encoder_cache = return_logprobs, encoder_cache
        self.on_error = on_error
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
        self.num_read = 0  # prompt tokens of the last step
        self._sequences: dict[int, SlotSequence] = {}  # by slot
        self._engine: SlotEngine | None = None  # made for the first sequence

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return self.num_slots - len(self._sequences)

    @property
    def num_unfinished(self) -> int:
        """Number of sequences that `step` continues."""
        return sum(not item.finished for item in self._sequences.values())

    @property
    def num_decoding(self) -> int:
        """Number of sequences that have a token and get the next one in a step."""
        return sum(bool(x.tokens) and not x.finished for x in self._sequences.values())

    @property
    def num_reused(self) -> int:
        """Prompt tokens so far that were not read, since another prompt began with them."""
        return 0 if self._engine is None else self._engine.num_reused

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
        with_logprobs: bool = True,
    ) -> int:
        """Gives a sequence a slot; the next steps read its prompt.

        Args:
            inputs: prompt, or for an encoder-decoder model prompt and source.
            options: decoding options; None: those of the decoder.
            index, copy: indices of the prompt and of its continuation, which together with the seed
                determine the samples, as those of `generate`.
            processors: custom processors; see `miniformer.generation.logits_processors`.
            stop_fn: stop condition on the new tokens, in addition to EOS.
            num_top: number of most likely tokens to return with each token.
            with_logprobs: compute log-probabilities if the decoder does.

        Returns:
            The slot, from 0 to `num_slots` - 1.

        Raises:
            UserError: no slot is free, or see `Transformer.generate`.
        """
        options = self.options if options is None else options
        item = inputs if isinstance(inputs, GenerationInput) else GenerationInput(inputs)
        batch = pad_inputs([item])
        self._check(batch.ids.shape[1], options)
        check_prompts(self.model.config, batch, options)
        all_processors = build_processors(options, batch.ids.shape[1], processors)
        batch = batch.to(next(self.model.parameters()).device)
        memory = encode_sources(
            self.model, batch, self.encoder_cache, weight_dtype=self.options.weight_dtype
        )
        uniform = row_uniforms(options, [(index, copy)], batch.ids.device)
        sequence = SlotSequence(
            -1, options, all_processors, stop_fn, None if uniform is None else uniform[0],
            batch.ids[0].tolist(), self.return_logprobs and with_logprobs, num_top,
        )  # fmt: skip
        if not self._sequences:  # the weights may have changed
            self._engine = self._make_engine()
        assert self._engine is not None
        free = [slot for slot in range(self.num_slots) if slot not in self._sequences]
        sequence.slot = self._engine.begin(sequence, memory, free)
        self._sequences[sequence.slot] = sequence
        return sequence.slot

    @torch.inference_mode()
    def step(self, max_prompt_tokens: int | None = None) -> list[SlotToken]:
        """Decodes the next token of each unfinished sequence whose prompt is read.

        Args:
            max_prompt_tokens: most tokens of prompts to read in this step, so that the others do
                not wait long; None: all.

        Returns:
            The tokens by slot.

        Raises:
            UserError: logits are not finite, or no token is allowed, without `on_error`.
        """
        unfinished = [item for item in self._sequences.values() if not item.finished]
        if self._engine is None or not unfinished:
            return []
        running = {item.slot: item.tokens[-1] for item in unfinished if item.tokens}
        before = self._engine.num_read
        slots, logits = self._engine.advance(running, max_prompt_tokens)
        self.num_read = self._engine.num_read - before
        if not slots:
            return []
        sequences = [self._sequences[slot] for slot in slots]
        with self._engine.exclusive_threads():
            processed, failed = self._process(sequences, logits)
            if failed:
                rows = [row for row in range(len(slots)) if row not in failed]
                sequences = [sequences[row] for row in rows]
                logits, processed = logits[rows], processed[rows]
            tokens = self._sample(sequences, logits, processed) if sequences else []
        steps = []
        for item, token in zip(sequences, tokens, strict=True):
            item.add_token(token)
            logprob = item.logprobs[-1] if item.with_logprobs else None
            steps.append(SlotToken(item.slot, token, logprob, item.finished, item.top))
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
        assert self._engine is not None
        self._engine.remove(slot)
        return GenerationOutput.from_tokens(item.tokens, item.logprobs, item.options.eos_token_ids)

    def _make_engine(self) -> SlotEngine:
        """The engine for new sequences: the last one while its weights are those of the model."""
        runtime = make_runtime(self.model, [], self.options)
        engine: SlotEngine | None = runtime.slot_engine(self._engine, self.num_slots, self.capacity)
        return engine or RowEngine(self.model, self.options, self.num_slots, self.capacity)

    def _check(self, length: int, options: GenerationConfig) -> None:
        """Raises UserError for a prompt of `length` tokens that no slot can take."""
        if not self.num_free:
            raise UserError(
                f"all {self.num_slots} slots are in use; remove a sequence, or raise num_slots"
            )
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

    def _process(
        self, sequences: Sequence[SlotSequence], logits: Tensor
    ) -> tuple[Tensor, set[int]]:
        """Applies the processors; returns the logits, and rows that cannot continue."""
        maxima, processed, failed = logits.amax(-1), logits, set()
        is_finite = bool(maxima.isfinite().all())
        for row, item in enumerate(sequences):
            try:
                if not is_finite:
                    check_finite(maxima[row], 1 + len(item.tokens))
                if not item.processors:
                    continue
                tokens = torch.tensor([item.prompt + item.tokens], device=logits.device)
                changed = apply_processors(
                    item.processors, tokens, logits[row : row + 1], 1 + len(item.tokens)
                )
            except UserError as error:
                if self.on_error is None:
                    raise
                item.finished = True
                failed.add(row)
                self.on_error(item.slot, error)
                continue
            if processed is logits:
                processed = logits.float().clone()
            processed[row] = changed[0]
        return processed, failed

    def _sample(
        self, sequences: Sequence[SlotSequence], logits: Tensor, processed: Tensor
    ) -> list[int]:
        """Samples a token of each sequence, and sets their log-probabilities and top tokens.

        Args:
            sequences: unfinished sequences.
            logits: their logits, [n, V].
            processed: the same after the processors.
        """
        assert self._engine is not None
        self._set_top(sequences, logits)
        greedy = all(item.uniform is None and not item.processors for item in sequences)
        if greedy and self._engine.fuses_top_logprobs:
            logprobs, ids = (x[:, 0].tolist() for x in self._engine.top_logprobs(logits, 1))
            for item, logprob in zip(sequences, logprobs, strict=True):
                item.logprobs += [logprob] * item.with_logprobs
            return list(ids)
        groups = defaultdict[Any, list[int]](list)
        for row, item in enumerate(sequences):
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
        rows = [row for row, item in enumerate(sequences) if item.with_logprobs]
        if rows:
            for row, logprob in zip(rows, token_logprobs(logits[rows], token[rows]), strict=True):
                sequences[row].logprobs.append(logprob)
        return list(token.tolist())

    @staticmethod
    def _set_top(sequences: Sequence[SlotSequence], logits: Tensor) -> None:
        """Sets the most likely tokens of the sequences that ask for them; `logits`: [n, V]."""
        for row, item in enumerate(sequences):
            if item.num_top:
                values, ids = logits[row].float().log_softmax(-1).topk(item.num_top)
                item.top = [*zip(ids.tolist(), values.tolist(), strict=True)]
