"""A decoder in numpy that executes a GGUF file as llama.cpp documents its architectures.

It reads the file with the package gguf, and shares no code with the package under test. It covers
`llama` (rotated pairs are adjacent), `qwen2`, `qwen3`, `olmo2`, `gemma`, `gemma2`, `gemma3`,
`phi3`, `gptneox` (rotated pairs are halves) and `gpt2`.

Letters: T tokens, D width, H heads, K key-value heads, E head width.
"""

import math

import gguf
import numpy as np

_GELU = {"gptneox": "erf", "gpt2": "tanh"}
_erf = np.vectorize(math.erf)


class File:
    """Keys and dequantized tensors of a file."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {item.name: item.tensor_type.name.lower() for item in reader.tensors}
        self.tensors = {
            item.name: gguf.quants.dequantize(item.data, item.tensor_type).reshape(
                [int(x) for x in item.shape[::-1]]
            )
            for item in reader.tensors
        }
        self.name = self.keys["general.architecture"]

    def key(self, name, default=None):
        return self.keys.get(f"{self.name}.{name}", default)


def logits(path, ids):
    """Logits of each position, [T, V]."""
    file = File(path)
    tensors = file.tensors
    x = tensors["token_embd.weight"][ids].astype(np.float64)
    if file.name.startswith("gemma"):
        x = x * np.sqrt(x.shape[1])
    if file.name == "gpt2":
        x = x + tensors["position_embd.weight"][: len(ids)]
    for index in range(file.key("block_count")):
        x = _layer(file, f"blk.{index}.", x, index)
    x = _norm(file, "output_norm", x)
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    result = x @ head.T
    cap = file.key("final_logit_softcapping")
    return cap * np.tanh(result / cap) if cap else result


def _linear(file, name, x):
    y = x @ file.tensors[name + ".weight"].astype(np.float64).T
    return y + file.tensors[name + ".bias"] if name + ".bias" in file.tensors else y


def _norm(file, name, x):
    weight = file.tensors[name + ".weight"]
    if file.key("attention.layer_norm_rms_epsilon") is not None:
        eps = file.key("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + file.key("attention.layer_norm_epsilon"))
    return x * weight + file.tensors[name + ".bias"]


def _layer(file, prefix, x, index):
    def optional(name, y):
        return _norm(file, prefix + name, y) if f"{prefix}{name}.weight" in file.tensors else y

    attended = optional(
        "post_attention_norm", _attention(file, prefix, optional("attn_norm", x), index)
    )
    after = x + attended
    source = x if file.key("use_parallel_residual") else after
    y = _feed_forward(file, prefix, optional("ffn_norm", source))
    return after + optional("post_ffw_norm", y)


def _feed_forward(file, prefix, x):
    up = _linear(file, prefix + "ffn_up", x)
    if file.name == "phi3":
        gate, up = np.split(up, 2, -1)
    elif prefix + "ffn_gate.weight" in file.tensors:
        gate = _linear(file, prefix + "ffn_gate", x)
    else:
        gate, up = up, 1.0
    return _linear(file, prefix + "ffn_down", _activation(file, gate) * up)


def _activation(file, x):
    kind = _GELU.get(file.name, "tanh" if file.name.startswith("gemma") else "silu")
    if kind == "erf":  # the model's own; llama.cpp has an approximation
        return 0.5 * x * (1 + _erf(x / np.sqrt(2)))
    if kind == "tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


def _attention(file, prefix, x, index):
    heads, kv_heads = file.key("attention.head_count"), file.key("attention.head_count_kv")
    width = file.key("attention.key_length", x.shape[1] // heads)
    if prefix + "attn_qkv.weight" in file.tensors:
        sizes = [heads * width, kv_heads * width]
        q, k, v = np.split(_linear(file, prefix + "attn_qkv", x), np.cumsum(sizes), -1)
    else:
        q, k, v = (_linear(file, f"{prefix}attn_{letter}", x) for letter in "qkv")
    if file.name == "olmo2":
        q, k = _norm(file, prefix + "attn_q_norm", q), _norm(file, prefix + "attn_k_norm", k)
    q, k, v = (y.reshape(len(x), -1, width).transpose(1, 0, 2) for y in (q, k, v))  # [H, T, E]
    if prefix + "attn_q_norm.weight" in file.tensors and file.name != "olmo2":
        q, k = _norm(file, prefix + "attn_q_norm", q), _norm(file, prefix + "attn_k_norm", k)
    pattern = file.key("attention.sliding_window_pattern", [False] * (index + 1))
    local = pattern[index]
    if file.name != "gpt2":
        q, k = _rotate(file, q, local=local), _rotate(file, k, local=local)
    k, v = (np.repeat(y, heads // kv_heads, 0) for y in (k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width)
    cap = file.key("attn_logit_softcapping")
    scores = cap * np.tanh(scores / cap) if cap else scores
    distance = np.arange(len(x))[:, None] - np.arange(len(x))[None]
    visible = (distance >= 0) & (not local or distance < file.key("attention.sliding_window"))
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = (weights @ v).transpose(1, 0, 2).reshape(len(x), heads * width)
    return _linear(file, prefix + "attn_output", out)


def _rotate(file, x, *, local):
    count = file.key("rope.dimension_count")
    base = file.key("rope.freq_base_swa" if local else "rope.freq_base", file.key("rope.freq_base"))
    angles = base ** (-np.arange(0, count, 2) / count)
    angles = angles / file.tensors.get("rope_freqs.weight", 1.0)
    if file.key("rope.scaling.type") == "linear" and not local:
        angles = angles / file.key("rope.scaling.factor")
    angles = np.arange(x.shape[1])[:, None] * angles
    cos, sin = np.cos(angles), np.sin(angles)
    result = x.copy()
    if file.name == "llama":
        first, second = slice(0, count, 2), slice(1, count, 2)
    else:
        first, second = slice(0, count // 2), slice(count // 2, count)
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result
