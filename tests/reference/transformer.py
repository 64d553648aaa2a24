"""The Transformer written out: one sequence, one head and one pair of tokens at a time, in float64.

Only torch's arithmetic is used, so gradients can be compared too. `settings` are the fields of a
TransformerConfig as a dict with every null filled in; `weights` is a state dict.
"""

import math

import torch

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    ),
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
GATES = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}


def logits(weights, settings, inputs, segments):
    """Logits [T, outputs] of one row: ids [T] or features [T, I]; segments: T numbers, 0 =
    padding."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    positions = places(segments)
    if settings["input_dim"] is None:
        x = torch.stack([weights["embedding.weight"][token] for token in inputs])
    else:
        x = linear(weights, "embedding", inputs.double())
    for index in range(settings["n_layers"]):
        name = f"layers.{index}."

        def attend(y, name=name):
            return attention(weights, settings, name + "attention.", y, positions, segments)

        def feed(y, name=name):
            return feed_forward(weights, settings, name + "feed_forward.", y)

        for sublayer, norm in ((attend, "attention_norm"), (feed, "feed_forward_norm")):
            if settings["pre_norm"]:
                x = x + sublayer(normalize(weights, settings, name + norm, x))
            else:
                x = normalize(weights, settings, name + norm, x + sublayer(x))
    if settings["pre_norm"]:
        x = normalize(weights, settings, "final_norm", x)
    if "head.weight" in weights:
        return linear(weights, "head", x)
    return x @ weights["embedding.weight"].T


def places(segments):
    """Position of each token: how many real ones of its segment came before it."""
    return [
        sum(1 for earlier in segments[:t] if earlier == segment)
        for t, segment in enumerate(segments)
    ]


def attention(weights, settings, name, x, positions, segments):
    width, length = settings["head_dim"], x.shape[0]
    q, k, v = (linear(weights, f"{name}{part}_proj", x) for part in "qkv")
    group = settings["n_heads"] // settings["n_kv_heads"]
    heads = []
    for head in range(settings["n_heads"]):
        own = slice(head * width, (head + 1) * width)
        shared = slice(head // group * width, (head // group + 1) * width)
        queries = [turn(q[t, own], positions[t], settings) for t in range(length)]
        keys = [turn(k[t, shared], positions[t], settings) for t in range(length)]
        rows = []
        for t in range(length):
            seen = [
                s
                for s in range(length)
                if segments[s] == segments[t] != 0 and not (settings["causal"] and s > t)
            ]
            if not seen:
                rows.append(torch.zeros(width, dtype=torch.float64))
                continue
            scores = torch.stack([queries[t] @ keys[s] / math.sqrt(width) for s in seen])
            shares = torch.exp(scores - scores.max())
            shares = shares / shares.sum()
            rows.append(sum(shares[i] * v[s, shared] for i, s in enumerate(seen)))
        heads.append(torch.stack(rows))
    return linear(weights, f"{name}o_proj", torch.cat(heads, dim=1))


def turn(vector, position, settings):
    """Rotary embedding as multiplication of complex numbers: element i is paired with i + half."""
    if settings["position"] == "none":
        return vector
    dim = int(settings["head_dim"] * settings["rotary_pct"]) // 2 * 2
    half = dim // 2
    angle = position * settings["rotary_base"] ** (
        -torch.arange(half, dtype=torch.float64) * 2 / dim
    )
    pairs = torch.complex(vector[:half], vector[half:dim])
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag, vector[dim:]])


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
    x = x * weights[name + ".weight"]
    return x + weights[name + ".bias"] if name + ".bias" in weights else x


def linear(weights, name, x):
    x = x @ weights[name + ".weight"].T
    return x + weights[name + ".bias"] if name + ".bias" in weights else x
