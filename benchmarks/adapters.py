"""LoRA steps compared with peft on the model of transformers: speed, memory, switching.

    python benchmarks/adapters.py [--rounds 5] [--save]

A Llama of 13.8M weights, rank 8 on all linear maps, AdamW in a bare loop. The contestants alternate
in one process, in a different order each round; ratios are medians over rounds. `memory` is the
peak above that before the model, of a process of its own. `int8` and `int4` have a quantized base.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from environment import environment
from miniformer import Transformer, TransformerConfig, adapters, apply_transforms
from miniformer.adapters.base.quantized import QuantizedLinear
from miniformer.config.architectures import architecture_config

RESULTS = Path(__file__).parent / "results" / "adapters.json"
NAMES = ("lora", "int8", "int4", "peft")
SIZES = {"vocab_size": 8192, "d_model": 384, "n_layers": 6, "n_heads": 6, "d_ff": 1024}
TINY = {"vocab_size": 100, "d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64}


def make(name, sizes, length):
    """A model with an adapter of rank 8."""
    torch.manual_seed(0)
    if name == "peft":
        return make_peer(sizes, length)
    fields = architecture_config("llama", max_seq_len=length, dropout=0.0, **sizes)
    model = Transformer(TransformerConfig(**{**fields, "tie_embeddings": True}))
    if name != "lora":
        bits = int(name.removeprefix("int"))
        apply_transforms(model, [{"type": "quantized_base", "bits": bits}])
    return adapters.add(model, r=8).train()


def make_peer(sizes, length):
    import peft
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["d_model"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        intermediate_size=sizes["d_ff"],
        max_position_embeddings=length,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config)
    lora = peft.LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora).train()


class Loop:
    """Steps of a model on random tokens."""

    def __init__(self, name, sizes, batch, length):
        self.name, self.model = name, make(name, sizes, length)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.ids = torch.randint(0, sizes["vocab_size"], (batch, length))

    def step(self):
        """One step; its seconds."""
        start = time.perf_counter()
        if self.name == "peft":
            loss = self.model(input_ids=self.ids, labels=self.ids).loss
        else:
            features = self.model.features(self.ids)[:, :-1].flatten(0, 1)
            labels = self.ids[:, 1:].flatten()
            loss = self.model.cross_entropy(features, labels) / len(labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start


def state_share(sizes, length):
    """Bytes of gradients and of AdamW's state with LoRA / of full fine-tuning."""
    counts = [p.numel() for p in make("lora", sizes, length).parameters() if p.requires_grad]
    fields = architecture_config("llama", max_seq_len=length, dropout=0.0, **sizes)
    full = Transformer(TransformerConfig(**{**fields, "tie_embeddings": True}))
    return sum(counts) / sum(p.numel() for p in full.parameters())


def weight_ratio(name, sizes, length):
    """Bytes of the matrices of the layers / those of float32, and the same of the whole base."""
    model = make(name, sizes, length)
    quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    own = sum(module.values.nbytes + module.scales.nbytes for module in quantized)
    plain = sum(4 * module.in_features * module.out_features for module in quantized)
    rest = sum(
        parameter.nbytes
        for key, parameter in model.named_parameters()
        if ".adapters." not in key
    )  # fmt: skip
    return round(own / plain, 4), round((own + rest) / (plain + rest), 4)


def switch_ms(sizes, length):
    """Milliseconds to use another adapter of a loaded model, the median of 20."""
    model = adapters.add(make("lora", sizes, length), r=8, name="second")
    times = []
    for turn in range(20):
        start = time.perf_counter()
        adapters.use(model, ("default", "second")[turn % 2])
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 2)


def peak_bytes(name, given):
    """Peak memory of two steps in a process of their own, above that before the model."""
    command = [sys.executable, __file__, "--memory_of", name]
    command += ["--batch", str(given.batch), "--length", str(given.length)]
    command += ["--tiny"] if given.tiny else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_kilobytes():
    """Peak resident set; not ru_maxrss, which a child process inherits."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0])


def measure_memory(name, sizes, given):
    if name == "peft":
        import peft  # noqa: F401
        import transformers  # noqa: F401
        from transformers.models.llama import modeling_llama  # noqa: F401
    before = peak_kilobytes()
    loop = Loop(name, sizes, given.batch, given.length)
    loop.step()
    loop.step()
    print(1024 * (peak_kilobytes() - before))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="a model of a few weights")
    parser.add_argument("--memory_of", choices=NAMES, help="measure the memory of one; internal")
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    parser.add_argument("--out", type=Path, help="write the result to this file instead")
    given = parser.parse_args()
    sizes = TINY if given.tiny else SIZES
    if given.memory_of:
        measure_memory(given.memory_of, sizes, given)
        return
    try:
        import peft  # noqa: F401

        names = NAMES
    except ImportError:
        names = NAMES[:-1]
    loops = {name: Loop(name, sizes, given.batch, given.length) for name in names}
    seconds = {name: [] for name in names}
    for turn in range(given.rounds + 1):
        order = [*names[turn % len(names) :], *names[: turn % len(names)]]
        for name in order:
            elapsed = loops[name].step()
            if turn:
                seconds[name].append(elapsed)
    tokens = given.batch * given.length
    row = {f"{x}_tokens_per_s": round(tokens / statistics.median(s)) for x, s in seconds.items()}

    def ratio(name, peer):
        pairs = zip(seconds[name], seconds[peer], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    row |= {f"{name}_step_time_ratio": ratio(name, "lora") for name in ("int8", "int4")}
    memory = {name: peak_bytes(name, given) for name in names}
    row |= {f"{name}_memory_mb": round(size / 1e6, 1) for name, size in memory.items()}
    if "peft" in names:
        row["speed_ratio to peft"] = round(1 / ratio("lora", "peft"), 3)
        row["memory_ratio to peft"] = round(memory["lora"] / max(1, memory["peft"]), 3)
    row["state_share"] = round(state_share(sizes, given.length), 4)
    for name in ("int8", "int4"):
        row[f"{name}_matrix_ratio"], row[f"{name}_base_ratio"] = weight_ratio(
            name, sizes, given.length
        )
    row["switch_ms"] = switch_ms(sizes, given.length)
    print(json.dumps(row, indent=2), flush=True)
    if given.save or given.out:
        packages = ("peft", "transformers") if "peft" in names else ()
        stored = {"environment": environment(*packages), "rounds": given.rounds, "row": row}
        (given.out or RESULTS).write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
