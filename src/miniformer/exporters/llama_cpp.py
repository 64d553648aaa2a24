"""Execution of a GGUF file with llama.cpp through the low-level functions of llama-cpp-python.

All arithmetic is float32: keys and values in the cache too, without flash attention.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from miniformer.config import UserError

_FLOAT32 = 0  # GGML_TYPE_F32
_NO_POOLING = 0


# Drops messages of llama.cpp.
_no_log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    lambda level, text, data: None
)


class LlamaCpp:
    """A loaded model.

    Args:
        path: the GGUF file.
        context: tokens of the context.
        encoder: true for an encoder, whose outputs are vectors of tokens.

    Raises:
        UserError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, context: int, *, encoder: bool = False) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        llama_cpp.llama_log_set(_no_log, None)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_mmap = False
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise UserError(f"{path}: llama.cpp cannot load it")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.type_k = settings.type_v = _FLOAT32
        settings.flash_attn_type = 0
        settings.n_threads = settings.n_threads_batch = 1
        settings.embeddings = encoder
        if encoder:
            settings.pooling_type = _NO_POOLING
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise UserError(f"{path}: llama.cpp cannot make a context of {context} tokens")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.width = int(llama_cpp.llama_model_n_embd(self._model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def logits(self, ids: Sequence[int]) -> Any:
        """Logits of each position, [T, V]; earlier texts are forgotten."""
        self._forget()
        return self._run(self._lib.llama_decode, ids, self.vocab_size)

    def vectors(self, ids: Sequence[int]) -> Any:
        """Vectors of an encoder's last layer, [T, D]."""
        self._forget()
        return self._run(self._lib.llama_encode, ids, self.width)

    def target_logits(self, source: Sequence[int], target: Sequence[int]) -> Any:
        """Logits of each position of a target, [T, V]."""
        self._forget()
        self._run(self._lib.llama_encode, source, None)
        return self._run(self._lib.llama_decode, target, self.vocab_size)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of a text; special tokens spelled out in it stay text.

        Args:
            text: the text.
            special: true: with the tokens before and after it.
        """
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(
            self._vocab, data, len(data), ids, len(ids), special, False
        )
        assert count >= 0, text
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Text of token ids, without special tokens."""
        numbers = (ctypes.c_int32 * max(1, len(ids)))(*ids)
        size = 64 + 64 * len(ids)
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_detokenize(
                self._vocab, numbers, len(ids), buffer, size, True, False
            )
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _forget(self) -> None:
        memory = self._lib.llama_get_memory(self._context)
        if memory:
            self._lib.llama_memory_clear(memory, True)

    def _run(self, function: Any, ids: Sequence[int], width: int | None) -> Any:
        batch = self._lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for index, number in enumerate(ids):
                batch.token[index], batch.pos[index] = number, index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = width is not None
            if function(self._context, batch):
                raise UserError("llama.cpp cannot execute the exported file")
        finally:
            self._lib.llama_batch_free(batch)
        if width is None:
            return None
        is_encoder = function is self._lib.llama_encode
        get = self._lib.llama_get_embeddings if is_encoder else self._lib.llama_get_logits
        values = np.ctypeslib.as_array(get(self._context), shape=(len(ids) * width,))
        return values.reshape(len(ids), width).copy()
