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
from miniformer.model.cache.kv_cache import KVCache
from miniformer.runtime.native.build import NativeKernelsUnavailable, load_library
from miniformer.runtime.native.decode_step import NativeRunner
from miniformer.runtime.native.thread_tuning import ThreadTuner
from miniformer.runtime.native.threads import single_openmp_thread
from miniformer.runtime.native.weights import NativeWeights, unsupported_reason

_ENGINES: weakref.WeakKeyDictionary[Any, tuple[Any, Engine]] = weakref.WeakKeyDictionary()


class NativeKernelsWarning(UserWarning):
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

    def __init__(self, model: Any, weight_dtype: str = "float32", threads: int = 1) -> None:
        reason = unsupported_reason(model)
        if reason is not None:
            raise NativeKernelsUnavailable(reason)
        self.library, self.weight_dtype = load_library(), weight_dtype
        self.config = model.config
        stack = getattr(model, "decoder", model)
        self._stack = weakref.ref(stack)  # an engine is kept for a model, and must not keep it
        self._native_weights = NativeWeights(model, weight_dtype)
        self.model, self.nbytes = self._native_weights.model, self._native_weights.nbytes
        self.thread_tuner, self._thread_pools = ThreadTuner(threads), dict[int, int]()
        self._lock = threading.Lock()  # several streams may share a model, and the cores
        self.handle = self._thread_pool(threads)

    @property
    def stack(self) -> Any:
        """The layers that it was made of."""
        return self._stack()

    @property
    def supports_prefill(self) -> bool:
        """Whether it can read prompts, too, and need not leave them to the model."""
        return not self.model.has_cross and not self.stack.position.adds_bias

    def make_runner(
        self, cache: KVCache, mask: Tensor | None = None, copies: int = 1
    ) -> NativeRunner:
        """Steps that go on from what is in a cache.

        Args:
            cache: of kind full, with the source's keys and values where the model is a decoder.
            mask: which of the source is real, bool [B, S]; None: all.
            copies: rows, one after the other, that share one source of the cache.
        """
        return NativeRunner(self, cache, mask, copies)

    def run(self, step: Any, rows: int | None = None) -> None:
        """Takes a step, or reads a part of prompts.

        Args:
            step: what there is to be read and written.
            rows: how many the step is of; None: it is a part of prompts.
        """
        with self._lock:
            threads = (
                self.thread_tuner.max_threads
                if rows is None
                else self.thread_tuner.num_threads(rows)
            )
            self.handle = self._thread_pool(threads)
            began = time.perf_counter()
            self.library.engine_step(
                self.handle, ctypes.addressof(self.model), ctypes.addressof(step)
            )
            if rows is not None:
                self.thread_tuner.record_time(rows, time.perf_counter() - began)

    def _thread_pool(self, threads: int) -> int:
        """So many threads, which sleep when there is nothing to do."""
        if threads not in self._thread_pools:
            self._thread_pools[threads] = self.library.engine_new(threads)
            weakref.finalize(
                self, _free_thread_pool, self.library, self._thread_pools[threads], os.getpid()
            )
        return self._thread_pools[threads]

    def top_logprobs(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The likeliest tokens of each row, the likeliest first.

        Args:
            logits: float32 [B, V].
            many: of them, N.

        Returns:
            Log-probabilities, float32 [B, N], and tokens, int [B, N].
        """
        rows, vocabulary = logits.shape
        logits = logits.contiguous()
        log_p = torch.empty(rows, k)
        tokens = torch.empty(rows, k, dtype=torch.long)
        with self._lock:
            self.library.engine_best(
                self.handle, logits.data_ptr(), rows, vocabulary, k, log_p.data_ptr(),
                tokens.data_ptr(),
            )  # fmt: skip
        return log_p, tokens

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """What is done between steps is done so that it leaves the cores to them."""
        return single_openmp_thread()


def get_engine(model: Any, weight_dtype: str = "float32") -> Engine | None:
    """The model's engine, made anew where its weights have changed; None: decode without.

    Args:
        model: a causal Transformer or a Seq2SeqTransformer.
        weights: see `Engine`.

    Raises:
        UserError: other weights than float32 are asked for, and the kernels cannot be had.
    """
    # A process that was forked has none of its parent's threads.
    now = (
        weight_dtype,
        torch.get_num_threads(),
        os.getpid(),
        *map(_weight_version, model.parameters()),
    )
    known = _ENGINES.get(model)
    if known is not None and known[0] == now and unsupported_reason(model) is None:
        return known[1]
    try:
        made = Engine(model, weight_dtype, torch.get_num_threads())
    except NativeKernelsUnavailable as error:
        if weight_dtype != "float32":
            raise UserError(
                f"weight_dtype={weight_dtype} needs the decoding kernels: {error}"
            ) from None
        _warn_once(str(error))
        return None
    _ENGINES[model] = (now, made)
    return made


def _free_thread_pool(library: ctypes.CDLL, handle: int, process: int) -> None:
    if os.getpid() == process:
        library.engine_free(handle)


def _weight_version(parameter: Tensor) -> tuple[int, int]:
    """What changes with a weight."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


@functools.cache
def _warn_once(reason: str) -> None:
    if "compile" in reason:
        warnings.warn(
            f"decoding goes without its kernels, several times slower: {reason}",
            NativeKernelsWarning,
            stacklevel=2,
        )
