"""Reference Transformer in float64: one row, one head and one query at a time.

It uses torch's arithmetic only, so gradients can be compared too. `settings` are the fields of a
TransformerConfig as a dict with every null replaced; `weights` is a state dict. `tests/parity`
compares this file with the published models of Hugging Face's transformers.
"""

import functools
import math

import torch

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ),
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
}
GATES = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu"}
HEADS = {"dense_tanh": "tanh", "dense_relu": "relu"}


def logits(weights, settings, inputs, segments, token_types=None):
    """Logits [T, outputs] of one row: ids [T] or features [T, I]; segments: T numbers, 0 =
    padding."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    return head(weights, settings, features(weights, settings, inputs, segments, token_types))


def pooled(weights, settings, inputs, segments, token_types=None):
    """Outputs [outputs] of the head for the pooled vector of a row."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    x = features(weights, settings, inputs, segments, token_types)
    return pool_features(weights, settings, x, segments)


def pool_features(weights, settings, x, segments):
    """Outputs of the head for the pooled features [T, D], with float64 weights."""
    real = x[[t for t, segment in enumerate(segments) if segment != 0]]
    maxima = torch.stack([column.max() for column in real.T])
    poolings = {"mean": real.mean(dim=0), "max": maxima, "first": real[0], "last": real[-1]}
    vectors = [poolings[name] for name in settings["pooling"].split("+")]
    return head(weights, settings, sum(vectors) / len(vectors))


def seq2seq_logits(weights, settings, source, source_segments, target, target_segments):
    """Logits [T, outputs] of one row of a Seq2SeqTransformer: ids; segments: 1 = real, 0 =
    padding."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    encoder = settings | {"causal": False}
    decoder = settings | {"causal": True, "n_layers": settings["n_decoder_layers"]}
    own = settings.get("source_vocab_size")
    x = embed(weights, settings, source, None, "source_embedding" if own else "embedding")
    memory = stack(weights, encoder, "encoder.", x, source_segments)
    readable = [s for s, segment in enumerate(source_segments) if segment != 0]
    y = embed(weights, settings, target, None)
    y = stack(weights, decoder, "decoder.", y, target_segments, (memory, readable))
    return head(weights, settings, y)


def features(weights, settings, inputs, segments, token_types):
    x = embed(weights, settings, inputs, token_types)
    return stack(weights, settings, "", x, segments)


def embed(weights, settings, inputs, token_types, name="embedding"):
    if settings["input_dim"] is not None:
        x = linear(weights, "embedding", inputs.double())
    else:
        x = torch.stack([weights[f"{name}.weight"][token] for token in inputs])
        x = x * given(settings["embedding_scale"], 1.0)
    if settings["token_types"] is not None:
        types = [0] * len(inputs) if token_types is None else token_types
        x = x + torch.stack([weights["type_embedding.weight"][kind] for kind in types])
    return x


def head(weights, settings, x):
    """Outputs or logits of features [..., D]; scale and soft-cap apply to logits only."""
    if settings["head"] != "linear":
        name = HEADS.get(settings["head"]) or settings.get("head_activation") or "gelu"
        x = ACTIVATIONS[name](linear(weights, "head.dense", x))
    if settings["head"] == "masked_lm":
        x = normalize(weights, settings, "head.norm", x)
    if settings["output_dim"] is not None:
        return linear(weights, "head", x)
    x = x * given(settings["logit_scale"], 1.0)
    weight = weights["head.weight" if "head.weight" in weights else "embedding.weight"]
    x = x @ weight.T
    if "head.bias" in weights:
        x = x + weights["head.bias"]
    return softcap(x, settings["final_softcap"])


def stack(weights, settings, name, x, segments, source=None):
    """Applies the layers to x [T, D]; source of a decoder: (features, indices of real tokens)."""
    positions = token_positions(segments)
    x = x + position_vectors(weights, settings, name, positions)
    if settings["embedding_norm"]:
        x = normalize(weights, settings, name + "embedding_norm", x)
    bias = position_bias(weights, settings, name, positions)
    for index in range(settings["n_layers"]):
        layer = f"{name}layers.{index}."
        windowed = is_windowed(settings, index)
        visible = visible_keys(settings, positions, segments, windowed)
        rotations = rotation(settings, positions, segments, windowed)

        def self_attention(y, layer=layer, visible=visible, rotations=rotations):
            sinks = weights[layer + "attention.sinks"] if settings["attention_sinks"] else None
            return attention(
                weights, settings, layer + "attention.", y, y, visible, rotations, bias, sinks
            )

        def cross_attention(y, layer=layer):
            # Without positions: source and target have separate ones.
            memory, real = source
            return attention(
                weights, settings, layer + "cross_attention.", y, memory, [real] * len(y)
            )

        def mlp(y, layer=layer):
            return feed_forward(weights, settings, layer + "feed_forward.", y)

        sublayers = {
            "attention": self_attention, "cross_attention": cross_attention, "feed_forward": mlp,
        }  # fmt: skip
        if source is None:
            del sublayers["cross_attention"]
        if settings["parallel_residual"]:
            x = x + sum(
                sublayer(normalize(weights, settings, f"{layer}{part}_norm", x))
                for part, sublayer in sublayers.items()
            )
        else:
            for part, sublayer in sublayers.items():
                x = residual(weights, settings, layer + part, x, sublayer)
    if settings["norm_placement"] != "post":
        x = normalize(weights, settings, name + "final_norm", x)
    return x


def residual(weights, settings, name, x, sublayer):
    def norm(part, y):
        # ModernBERT: the embedding's norm replaces that of the first layer.
        first = name.endswith("layers.0.attention") and part == "_norm"
        if first and not settings.get("first_attention_norm", True):
            return y
        return normalize(weights, settings, name + part, y)

    placement = settings["norm_placement"]
    if placement == "pre":
        return x + sublayer(norm("_norm", x))
    if placement == "post":
        return norm("_norm", x + sublayer(x))
    if placement == "both":
        return x + norm("_out_norm", sublayer(norm("_norm", x)))
    assert placement == "output", placement
    return x + norm("_out_norm", sublayer(x))


def token_positions(segments):
    """Position of each token: the number of earlier tokens of its segment."""
    return [
        sum(1 for earlier in segments[:t] if earlier == segment)
        for t, segment in enumerate(segments)
    ]


def is_windowed(settings, index):
    pattern = given(settings["window_pattern"], "L")
    return settings["sliding_window"] is not None and pattern[index % len(pattern)] == "L"


def visible_keys(settings, positions, segments, windowed):
    """Indices of the keys that each query may attend to."""
    window, causal = settings["sliding_window"], settings["causal"]

    def sees(t, s):
        if segments[s] != segments[t] or segments[t] == 0 or (causal and s > t):
            return False
        distance = abs(positions[t] - positions[s])
        return not windowed or distance <= (window - 1 if causal else window // 2)

    indices = range(len(segments))
    return [[s for s in indices if sees(t, s)] for t in indices]


def attention(weights, settings, name, x, memory, visible, rotations=None, bias=None, sinks=None):
    """Attention of x [T, D] to memory [S, D]; bias [H, T, S]; sinks [H]."""
    width = settings["head_dim"]
    scale = given(settings["attention_scale"], width**-0.5)
    q = linear(weights, name + "q_proj", x)
    k, v = linear(weights, name + "k_proj", memory), linear(weights, name + "v_proj", memory)
    if settings["qk_norm"] == "projection":
        q = normalize(weights, settings, name + "q_norm", q)
        k = normalize(weights, settings, name + "k_norm", k)
    group = settings["n_heads"] // settings["n_kv_heads"]
    heads = []
    for index in range(settings["n_heads"]):
        shared = slice(index // group * width, (index // group + 1) * width)
        queries = q[:, index * width : (index + 1) * width]
        keys, values = k[:, shared], v[:, shared]
        if settings["qk_norm"] == "head":
            queries = normalize(weights, settings, name + "q_norm", queries)
            keys = normalize(weights, settings, name + "k_norm", keys)
        if rotations is not None:
            queries, keys = rotate(queries, rotations), rotate(keys, rotations)
        rows = []
        for t, indices in enumerate(visible):
            if not indices:
                rows.append(torch.zeros(width, dtype=torch.float64))
                continue
            scores = scale * (keys[indices] @ queries[t])
            if bias is not None:
                scores = scores + bias[index, t, indices]
            scores = softcap(scores, settings["logit_softcap"])
            if sinks is not None:  # another key, without a value
                scores = torch.cat([scores, sinks[index : index + 1]])
            probs = torch.exp(scores - scores.max())
            probs = probs / probs.sum()
            rows.append(probs[: len(indices)] @ values[indices])
        heads.append(torch.stack(rows))
    return linear(weights, name + "o_proj", torch.cat(heads, dim=1))


def position_vectors(weights, settings, name, positions):
    """Position vectors that are added to the embedding."""
    if settings["position"] == "learned":
        return torch.stack([weights[name + "position.weight"][position] for position in positions])
    if settings["position"] == "sinusoidal":
        half = settings["d_model"] // 2
        rates = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.tensor(positions, dtype=torch.float64)[:, None] * rates
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    if settings["position"] == "sinusoidal_fairseq":  # from 1 to 1/10000 inclusive, counted from 2
        rates = torch.logspace(0, -4, settings["d_model"] // 2, dtype=torch.float64)
        angles = torch.tensor(positions, dtype=torch.float64)[:, None] * rates + 2 * rates
        odd = torch.zeros(len(positions), settings["d_model"] % 2)
        return torch.cat([torch.sin(angles), torch.cos(angles), odd], dim=1)
    return 0.0


def position_bias(weights, settings, name, positions):
    """Bias [H, T, T] of the scores, or None."""
    if settings["position"] == "alibi":
        at = torch.tensor(positions, dtype=torch.float64)
        slopes = torch.tensor(alibi_slopes(settings["n_heads"]), dtype=torch.float64)
        return -slopes[:, None, None] * torch.abs(at[:, None] - at[None, :])
    if settings["position"] == "t5_relative":
        shape = (
            not settings["causal"],
            settings["relative_buckets"],
            settings["relative_max_distance"],
        )
        buckets = torch.tensor([[bucket(s - t, *shape) for s in positions] for t in positions])
        return weights[name + "position.weight"][buckets].permute(2, 0, 1)
    return None


def alibi_slopes(heads):
    """Press et al. 2021: a geometric series, completed from that of the next power of two."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    finer = [2 ** (-8 * (head + 1) / (2 * power)) for head in range(0, 2 * power, 2)]
    return slopes + finer[: heads - power]


@functools.cache
def bucket(distance, bidirectional, buckets, max_distance):
    """T5's bucket of key minus query position: exact for near ones, then logarithmic."""
    start = 0
    if bidirectional:
        buckets //= 2
        start = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    ratio = math.log(distance / exact) / math.log(max_distance / exact)
    return start + min(exact + int(ratio * (buckets - exact)), buckets - 1)


def rotation(settings, positions, segments, windowed):
    """Complex factors [T, pairs] of queries and keys, or None."""
    if settings["position"] != "rotary":
        return None
    dim = int(settings["head_dim"] * settings["rotary_pct"]) // 2 * 2
    base, scaling = settings["rotary_base"], settings["rotary_scaling"]
    local = given(settings["rotary_base_local"], base)
    if windowed and local != base:
        base, scaling = local, None
    rotations = []
    for position, segment in zip(positions, segments, strict=True):
        rates, radius = frequencies(base, dim, scaling, segments.count(segment))
        angles = position * rates
        rotations.append(torch.polar(torch.full_like(angles, radius), angles))
    return torch.stack(rotations)


def frequencies(base, dim, scaling, length):
    """Radians per position for each pair, and the factor of sine and cosine."""
    pairs = torch.arange(dim // 2, dtype=torch.float64)
    rates = base ** (-2 * pairs / dim)
    if scaling is None:
        return rates, 1.0
    kind, factor = scaling["type"], scaling["factor"]
    if kind == "linear":
        return rates / factor, 1.0
    original = scaling["original_max_seq_len"]
    if kind == "dynamic":  # the base grows with the text
        growth = factor * max(length, original) / original - (factor - 1)
        return (base * growth ** (dim / (dim - 2))) ** (-2 * pairs / dim), 1.0
    if kind == "llama3":  # long wavelengths are divided, short ones unchanged, others blended
        low = given(scaling.get("low_freq_factor"), 1)
        high = given(scaling.get("high_freq_factor"), 4)
        rotations = original * rates / (2 * math.pi)  # in the original length
        unscaled = torch.clamp((rotations - low) / (high - low), 0, 1)
        return (1 - unscaled) * rates / factor + unscaled * rates, 1.0
    if kind == "longrope":  # a factor for each pair, others for a long text
        factors = scaling["long_factors" if length > original else "short_factors"]
        default = math.sqrt(1 + math.log(factor) / math.log(original))
        radius = scaling.get("attention_factor") or default
        return rates / torch.tensor(factors, dtype=torch.float64), radius
    assert kind == "yarn", kind  # the same by the index of the pair (Peng et al. 2023)

    def pair_of(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_of(given(scaling.get("beta_fast"), 32))), 0)
    high = min(math.ceil(pair_of(given(scaling.get("beta_slow"), 1))), dim - 1)
    ramp = torch.clamp((pairs - low) / (high - low if high != low else 0.001), 0, 1)
    default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    radius = scaling.get("attention_factor") or default
    return rates / factor * ramp + rates * (1 - ramp), radius


def rotate(vectors, rotations):
    """Rotary embedding as multiplication of complex numbers: element i is paired with i + half."""
    half = rotations.shape[1]
    pairs = torch.complex(vectors[:, :half], vectors[:, half : 2 * half]) * rotations
    return torch.cat([pairs.real, pairs.imag, vectors[:, 2 * half :]], dim=1)


def feed_forward(weights, settings, name, x):
    up = linear(weights, name + "up_proj", x)
    if settings["activation"] in GATES:
        act = ACTIVATIONS[GATES[settings["activation"]]]
        return linear(weights, name + "down_proj", act(linear(weights, name + "gate_proj", x)) * up)
    return linear(weights, name + "down_proj", ACTIVATIONS[settings["activation"]](up))


def normalize(weights, settings, name, x):
    if settings["norm"] == "layernorm":
        x = x - x.mean(dim=-1, keepdim=True)
    x = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + settings["norm_eps"])
    x = x * (weights[name + ".weight"] + (settings["norm"] == "zero_centered_rmsnorm"))
    return x + weights[name + ".bias"] if name + ".bias" in weights else x


def linear(weights, name, x):
    x = x @ weights[name + ".weight"].T
    return x + weights[name + ".bias"] if name + ".bias" in weights else x


def softcap(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


def given(value, default):
    return default if value is None else value
