"""Native engine: a model prepared for the decoding kernels.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
import time
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.runtime.native.build import NativeKernelsUnavailable, load_library
from miniformer.runtime.native.thread_tuning import ThreadTuner
from miniformer.runtime.native.weights import NativeWeights, unsupported_reason

_ENGINES: weakref.WeakKeyDictionary[Any, tuple[Any, Engine]] = weakref.WeakKeyDictionary()


class NativeKernelsWarning(UserWarning):
    """The native kernels are not available, so decoding is slower."""


class Engine:
    """Native engine of a model.

    Args:
        model: causal Transformer or Seq2SeqTransformer; its weights are copied.
        weight_dtype: float32, bf16, int8 or int4. int8 and int4 have a scale for each 32 weights of
            a row and quantize inputs to int8. With int4 the head is int8. stored: for each matrix
            the type with the fewest bytes that holds its weights exactly.
        threads: maximum number of threads per step; see `ThreadTuner`.

    Raises:
        NativeKernelsUnavailable: the kernels cannot be compiled or do not support the model.
    """

    def __init__(self, model: Any, weight_dtype: str = "float32", threads: int = 1) -> None:
        reason = unsupported_reason(model)
        if reason is not None:
            raise NativeKernelsUnavailable(reason)
        self.library, self.weight_dtype = load_library(), weight_dtype
        self.config = model.config
        self._native_weights = NativeWeights(model, weight_dtype)
        self.model, self.nbytes = self._native_weights.model, self._native_weights.nbytes
        self.thread_tuner, self._thread_pools = ThreadTuner(threads), dict[int, int]()
        self._lock = threading.Lock()  # streams of several threads may share a model
        self.handle = self._thread_pool(threads)

    def run(self, step: Any, rows: int | None = None) -> None:
        """Runs a decode step or a chunk of prefill.

        Args:
            step: inputs and outputs.
            rows: number of rows of a decode step; None: prefill.
        """
        with self._lock:
            threads = (
                self.thread_tuner.max_threads
                if rows is None
                else self.thread_tuner.num_threads(rows)
            )
            self.handle = self._thread_pool(threads)
            start_time = time.perf_counter()
            self.library.engine_step(
                self.handle, ctypes.addressof(self.model), ctypes.addressof(step)
            )
            if rows is not None:
                self.thread_tuner.record_time(rows, time.perf_counter() - start_time)

    def _thread_pool(self, threads: int) -> int:
        """Pool of threads, which sleep between steps."""
        if threads not in self._thread_pools:
            self._thread_pools[threads] = self.library.engine_new(threads)
            weakref.finalize(
                self, _free_thread_pool, self.library, self._thread_pools[threads], os.getpid()
            )
        return self._thread_pools[threads]

    def top_logprobs(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Runtime.top_logprobs`; logits: float32 [B, V]."""
        rows, vocab_size = logits.shape
        logits = logits.contiguous()
        logprobs = torch.empty(rows, k)
        tokens = torch.empty(rows, k, dtype=torch.long)
        with self._lock:
            self.library.engine_top_logprobs(
                self.handle, logits.data_ptr(), rows, vocab_size, k, logprobs.data_ptr(),
                tokens.data_ptr(),
            )  # fmt: skip
        return logprobs, tokens


def get_engine(model: Any, weight_dtype: str = "float32") -> Engine | None:
    """The cached engine of a model, rebuilt after weight changes; None: no kernels available.

    Args:
        model: causal Transformer or Seq2SeqTransformer.
        weight_dtype: see `Engine`. stored: float32, unless the directory of the model has matrices
            of other types.

    Raises:
        UserError: `weight_dtype` is another one than stored or float32, and the kernels are not
            available.
    """
    if weight_dtype == "stored" and not getattr(model, "weight_storage", None):
        weight_dtype = "float32"
    key = (
        weight_dtype,
        torch.get_num_threads(),
        os.getpid(),  # threads do not survive a fork
        *map(weight_version, itertools.chain(model.parameters(), model.buffers())),
    )
    cached = _ENGINES.get(model)
    if cached is not None and cached[0] == key and unsupported_reason(model) is None:
        return cached[1]
    try:
        engine = Engine(model, weight_dtype, torch.get_num_threads())
    except NativeKernelsUnavailable as error:
        if weight_dtype not in ("stored", "float32"):
            raise UserError(
                f"weight_dtype={weight_dtype} needs the decoding kernels: {error}"
            ) from None
        warn_once(str(error))
        return None
    _ENGINES[model] = (key, engine)
    return engine


def _free_thread_pool(library: ctypes.CDLL, handle: int, process: int) -> None:
    if os.getpid() == process:
        library.engine_free(handle)


def weight_version(parameter: Tensor) -> tuple[int, int]:
    """Value that changes when a weight changes."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


@functools.cache
def warn_once(reason: str) -> None:
    """Warns once if the kernels cannot be compiled; other reasons are no fault of the machine."""
    if "compile" in reason:
        warnings.warn(
            f"without native kernels the model is several times slower: {reason}",
            NativeKernelsWarning,
            stacklevel=2,
        )
