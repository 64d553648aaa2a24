"""A model in the hands of the kernels: what takes its steps.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.model.cache import KVCache
from miniformer.model.native.build import NoKernels, library
from miniformer.model.native.steps import Steps
from miniformer.model.native.threads import one_thread
from miniformer.model.native.tuning import Tuning
from miniformer.model.native.weights import Weights, why_not

_ENGINES: weakref.WeakKeyDictionary[Any, tuple[Any, Engine]] = weakref.WeakKeyDictionary()


class NoKernelsWarning(UserWarning):
    """Decoding is slower than it could be on this machine."""


class Engine:
    """A model ready for the kernels.

    Args:
        model: a causal Transformer or a Seq2SeqTransformer; its weights are copied.
        weights: how they are kept: float32, bf16, or int8 or int4 with a scale for each 32 along a
            row (inputs of products are in int8 then); beside int4, those of the head are in int8.
        threads: that may share a step; see `Tuning`.

    Raises:
        NoKernels: they cannot be compiled, or the model has what they do not know.
    """

    def __init__(self, model: Any, weights: str = "float32", threads: int = 1) -> None:
        reason = why_not(model)
        if reason is not None:
            raise NoKernels(reason)
        self.library, self.weights = library(), weights
        self.config = model.config
        stack = getattr(model, "decoder", model)
        self._stack = weakref.ref(stack)  # an engine is kept for a model, and must not keep it
        self._kept = Weights(model, weights)
        self.model, self.nbytes = self._kept.model, self._kept.nbytes
        self.tuning, self._pools = Tuning(threads), dict[int, int]()
        self._alone = threading.Lock()  # several streams may share a model, and the cores
        self.handle = self._pool(threads)

    @property
    def stack(self) -> Any:
        """The layers that it was made of."""
        return self._stack()

    @property
    def reads(self) -> bool:
        """Whether it can read prompts, too, and need not leave them to the model."""
        return not self.model.has_cross and not self.stack.position.adds_bias

    def begin(self, cache: KVCache, mask: Tensor | None = None, copies: int = 1) -> Steps:
        """Steps that go on from what is in a cache.

        Args:
            cache: of kind full, with the source's keys and values where the model is a decoder.
            mask: which of the source is real, bool [B, S]; None: all.
            copies: rows, one after the other, that share one source of the cache.
        """
        return Steps(self, cache, mask, copies)

    def run(self, step: Any, rows: int | None = None) -> None:
        """Takes a step, or reads a part of prompts.

        Args:
            step: what there is to be read and written.
            rows: how many the step is of; None: it is a part of prompts.
        """
        with self._alone:
            threads = self.tuning.most if rows is None else self.tuning.threads(rows)
            self.handle = self._pool(threads)
            began = time.perf_counter()
            self.library.engine_step(
                self.handle, ctypes.addressof(self.model), ctypes.addressof(step)
            )
            if rows is not None:
                self.tuning.took(rows, time.perf_counter() - began)

    def _pool(self, threads: int) -> int:
        """So many threads, which sleep when there is nothing to do."""
        if threads not in self._pools:
            self._pools[threads] = self.library.engine_new(threads)
            weakref.finalize(self, _free, self.library, self._pools[threads], os.getpid())
        return self._pools[threads]

    def best(self, logits: Tensor, many: int) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of each row, the likeliest first.

        Args:
            logits: float32 [B, V].
            many: of them, N.

        Returns:
            Log-probabilities, float32 [B, N], and tokens, int [B, N].
        """
        rows, vocabulary = logits.shape
        logits = logits.contiguous()
        log_p = torch.empty(rows, many)
        tokens = torch.empty(rows, many, dtype=torch.long)
        with self._alone:
            self.library.engine_best(
                self.handle, logits.data_ptr(), rows, vocabulary, many, log_p.data_ptr(),
                tokens.data_ptr(),
            )  # fmt: skip
        return log_p, tokens

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """What is done between steps is done so that it leaves the cores to them."""
        return one_thread()


def engine_for(model: Any, weights: str = "float32") -> Engine | None:
    """The model's engine, made anew where its weights have changed; None: decode without.

    Args:
        model: a causal Transformer or a Seq2SeqTransformer.
        weights: see `Engine`.

    Raises:
        UserError: other weights than float32 are asked for, and the kernels cannot be had.
    """
    # A process that was forked has none of its parent's threads.
    now = (weights, torch.get_num_threads(), os.getpid(), *map(_state, model.parameters()))
    known = _ENGINES.get(model)
    if known is not None and known[0] == now and why_not(model) is None:
        return known[1]
    try:
        made = Engine(model, weights, torch.get_num_threads())
    except NoKernels as error:
        if weights != "float32":
            raise UserError(f"weights={weights} needs the decoding kernels: {error}") from None
        _tell_once(str(error))
        return None
    _ENGINES[model] = (now, made)
    return made


def _free(library: ctypes.CDLL, handle: int, process: int) -> None:
    if os.getpid() == process:
        library.engine_free(handle)


def _state(parameter: Tensor) -> tuple[int, int]:
    """What changes with a weight."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


@functools.cache
def _tell_once(reason: str) -> None:
    if "compile" in reason:
        warnings.warn(
            f"decoding goes without its kernels, several times slower: {reason}",
            NoKernelsWarning,
            stacklevel=2,
        )
