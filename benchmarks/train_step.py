"""Time of a training step of models of one size: Miniformer and other libraries.

    python benchmarks/train_step.py [--memory] [--save]

A step is zero_grad, forward, loss, backward and AdamW, on the same random tokens and with the same
optimizer for all. Contestants alternate in one process, in a rotated order each round, so that load
of the machine affects all. Results are medians over rounds. Each computes its loss like its
library: Miniformer by LanguageModeling, the others by `labels=` or similar.

All models have the same layers, width, heads, feed-forward, tied embeddings and no dropout, and
one of two shapes:

    gpt2    gelu, layernorm, biases; learned positions (rotary in Miniformer unless --position)
    llama   swiglu, rmsnorm, no biases; rotary positions

"GEMM peak" is the faster of two matrix products, measured in the same rounds. A step is compared
with it in model FLOPs (Kaplan et al. 2020: matrix products, three times a forward pass).
`pip install transformers` is required; nanoGPT and LitGPT need a checkout.
"""

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import torch

from environment import environment
from miniformer import Transformer, TransformerConfig
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.optim.optimizers import adamw

WARM_UP = 2  # steps of each contestant that are not timed
SHAPES = {
    "gpt2": {"activation": "gelu", "norm": "layernorm", "bias": True},
    "llama": {"activation": "swiglu", "norm": "rmsnorm", "bias": False, "position": "rotary"},
}
PRODUCTS = [(2048, 384, 1536), (1024, 1024, 1024)]  # rows, inner, columns
PRODUCTS_A_ROUND = 5


def config_of(shape, vocab, options):
    """The size as a Miniformer config, from which the others are built."""
    choices = {"position": options.position, **SHAPES[shape]}
    return TransformerConfig(
        vocab_size=vocab, d_model=options.width, n_heads=options.heads, n_layers=options.layers,
        max_seq_len=options.seq_len, dropout=0.0, causal=True, **choices,
    )  # fmt: skip


# Contestants: (config, options) -> the model, and a function that returns the mean loss of a batch.


def miniformer(config, options):
    model, task = Transformer(config), LanguageModeling()

    def loss(batch):
        total, count = task.loss(model, batch)
        return total / count

    return model, loss


def hf_gpt2(config, options):
    from transformers import GPT2Config, GPT2LMHeadModel

    # Exact GELU, as in the others; its default "gelu_new" is slower.
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.max_seq_len, n_embd=config.d_model,
            n_layer=config.n_layers, n_head=config.n_heads, n_inner=config.ff_width,
            activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            use_cache=False, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
        )
    )  # fmt: skip
    return model, lambda batch: model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss


def hf_llama(config, options):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, max_position_embeddings=config.max_seq_len,
            hidden_size=config.d_model, num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, intermediate_size=config.ff_width,
            tie_word_embeddings=True, use_cache=False, bos_token_id=0, eos_token_id=0,
            attn_implementation="sdpa",
        )
    )  # fmt: skip
    return model, lambda batch: model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss


def nanogpt(config, options):
    spec = importlib.util.spec_from_file_location("nanogpt", options.nanogpt / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = module  # its dataclass needs its module
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(None):  # it prints its parameter count
        model = module.GPT(
            module.GPTConfig(
                block_size=config.max_seq_len, vocab_size=config.vocab_size, bias=True,
                n_layer=config.n_layers, n_head=config.n_heads, n_embd=config.d_model, dropout=0.0,
            )
        )  # fmt: skip
    return model, lambda batch: model(batch["input_ids"], batch["labels"])[1]


def litgpt(config, options):
    if str(options.litgpt) not in sys.path:
        sys.path.insert(0, str(options.litgpt))
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    model = GPT(
        Config(
            block_size=config.max_seq_len, vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size, n_layer=config.n_layers, n_head=config.n_heads,
            n_embd=config.d_model, intermediate_size=config.ff_width, rotary_percentage=1.0,
            parallel_residual=False, bias=False, norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        )
    )  # fmt: skip
    model.apply(model._init_weights)
    model.transformer.wte.weight = model.lm_head.weight  # as its pretraining ties them
    return model, lambda batch: chunked_cross_entropy(model(batch["input_ids"]), batch["labels"])


CONTESTANTS = {  # name -> shape, builder
    "miniformer gpt2": ("gpt2", miniformer),
    "miniformer llama": ("llama", miniformer),
    "transformers gpt2": ("gpt2", hf_gpt2),
    "transformers llama": ("llama", hf_llama),
    "nanogpt": ("gpt2", nanogpt),
    "litgpt": ("llama", litgpt),
}


def enabled_contestants(options):
    missing = {"nanogpt": options.nanogpt is None, "litgpt": options.litgpt is None}
    return [name for name in CONTESTANTS if not missing.get(name)]


class Contestant:
    """A model with its optimizer."""

    def __init__(self, name, vocab, dtype, options):
        torch.manual_seed(0)
        self.shape, build = CONTESTANTS[name]
        self.config, self.options, self.dtype = (
            config_of(self.shape, vocab, options),
            options,
            dtype,
        )
        model, self.loss = build(self.config, options)
        self.model = model.to(options.device).train()
        # The forward pass and the loss; graph breaks depend on the library.
        if options.compile:
            self.loss = torch.compile(self.loss)
        self.optimizer = adamw(self.model, lr=1e-4, weight_decay=0.1)
        self.seconds = []

    def step(self, batch):
        self.optimizer.zero_grad()
        narrow = self.dtype != torch.float32
        with torch.autocast(self.options.device, self.dtype, enabled=narrow):
            loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss

    def timed_step(self, batch):
        self.seconds.append(seconds_of(functools.partial(self.step, batch), self.options.device))


def seconds_of(work, device):
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start_time = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start_time


def batch_of(vocab, options, rows=None, seq_len=None):
    shape = (rows or options.batch_size, (seq_len or options.seq_len) + 1)
    ids = torch.randint(0, vocab, shape, device=options.device)
    return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}


class Gemm:
    """The fastest matrix product seen so far."""

    def __init__(self, dtype, device):
        self.device, self.best = device, 0.0
        self.pairs = [
            tuple(torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
            for m, k, n in PRODUCTS
        ]

    def round(self):
        for (m, k, n), (a, b) in zip(PRODUCTS, self.pairs, strict=True):
            for _ in range(PRODUCTS_A_ROUND):
                seconds = seconds_of(functools.partial(torch.mm, a, b), self.device)
                self.best = max(self.best, 2 * m * k * n / seconds / 1e9)


def peak_on_cpu(name, vocab, dtype, options):
    """Bytes of the second step, in a separate process without other allocations."""
    torch.set_num_threads(options.threads)
    contestant, batch = Contestant(name, vocab, dtype, options), batch_of(vocab, options)
    contestant.step(batch)  # allocates optimizer state and one-time buffers of libraries
    contestant.optimizer.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)  # returns free memory, whose use would not be measured
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
    before = high_water_mark()
    contestant.step(batch)
    return high_water_mark() - before


def high_water_mark():
    """Peak resident set in bytes; not ru_maxrss, which a child process inherits."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def peak_on_cuda(contestant, batch):
    contestant.optimizer.zero_grad()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contestant.step(batch)
    return torch.cuda.max_memory_allocated() - before


def measure(vocab, dtype, options):
    """Results of every contestant for one vocabulary size and dtype."""
    names = enabled_contestants(options)
    peaks = {}
    if options.memory and options.device == "cpu":
        for name in names:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                peaks[name] = process.apply(peak_on_cpu, (name, vocab, dtype, options))
    contestants = {name: Contestant(name, vocab, dtype, options) for name in names}
    torch.manual_seed(0)
    batch, gemm = batch_of(vocab, options), Gemm(dtype, options.device)
    for name, contestant in contestants.items():
        for _ in range(WARM_UP):
            first = contestant.step(batch)
        if not torch.isfinite(first):
            sys.exit(f"{name}: the loss is {float(first)}")
        if options.memory and options.device == "cuda":
            peaks[name] = peak_on_cuda(contestant, batch)
    for number in range(options.rounds):
        gemm.round()
        start = number % len(names)
        for name in names[start:] + names[:start]:
            contestants[name].timed_step(batch)
    return table(contestants, gemm.best, peaks, options)


def table(contestants, peak_gflops, peaks, options):
    tokens = options.batch_size * options.seq_len
    medians = {name: statistics.median(c.seconds) for name, c in contestants.items()}
    rows = {}
    for name, contestant in contestants.items():
        flops = 3 * contestant.config.flops_per_token(options.seq_len) * tokens
        rows[name] = {
            "parameters": sum(p.numel() for p in contestant.model.parameters()),
            "step_ms": round(1e3 * medians[name], 2),
            "step_ms_min": round(1e3 * min(contestant.seconds), 2),
            "tokens_per_s": round(tokens / medians[name]),
            "share_of_gemm_peak": round(flops / medians[name] / 1e9 / peak_gflops, 3),
        }
        if name in peaks:
            rows[name]["peak_mb"] = round(peaks[name] / 1e6, 1)
        if name.startswith("miniformer"):
            rows[name].update(time_ratios(name, contestants, medians))
    return {"gemm_peak_gflops": round(peak_gflops), **rows}


def time_ratios(name, contestants, medians):
    """Time of a contestant divided by that of the best other library; below 1 is faster."""
    libraries = [key for key in medians if not key.startswith("miniformer")]
    same_shape = [key for key in libraries if contestants[key].shape == contestants[name].shape]
    ratios = {}
    for key, candidates in (("best_other", libraries), ("best_of_its_shape", same_shape)):
        best = min(candidates, key=medians.get)
        pairs = zip(contestants[name].seconds, contestants[best].seconds, strict=True)
        ratio = statistics.median(own / reference for own, reference in pairs)
        ratios[key] = {"name": best, "time_ratio": round(ratio, 4)}
    return ratios


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, help="default: width / 64")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--vocab", type=int, nargs="+", default=[65, 32000])
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"],
        help="bfloat16: autocast",
    )  # fmt: skip
    parser.add_argument(
        "--position", default="rotary", help="position encoding of Miniformer's gpt2 shape"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile every contestant")
    parser.add_argument(
        "--memory", action="store_true",
        help="measure the peak memory of a step beyond weights and optimizer state (CPU: Linux)",
    )  # fmt: skip
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT")
    parser.add_argument("--litgpt", type=Path, metavar="PATH", help="a checkout of LitGPT")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/train_step.json"
    )
    parser.add_argument("--out", type=Path, help="write the result to this file instead")
    options = parser.parse_args()
    options.heads = options.heads or max(1, options.width // 64)
    options.threads = torch.get_num_threads()
    if importlib.util.find_spec("transformers") is None:
        parser.error("transformers is not installed: pip install -c constraints.txt transformers")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if options.memory and options.device == "cpu" and (options.compile or sys.platform != "linux"):
        parser.error(
            "--memory on a CPU reads the peak memory of Linux, which compilation raises, too"
        )
    for name, marker in (("nanogpt", "model.py"), ("litgpt", "litgpt/model.py")):
        checkout = getattr(options, name)
        if checkout is not None and not (checkout / marker).is_file():
            parser.error(f"--{name} {checkout}: it has no {marker}")
    return options


def main():
    options = parse_arguments()
    result = {
        "environment": environment(
            "transformers", checkouts={"nanogpt": options.nanogpt, "litgpt": options.litgpt}
        ),
        "device": options.device,
        "compiled": options.compile,
        "size": {
            name: getattr(options, name)
            for name in ("layers", "width", "heads", "seq_len", "batch_size", "rounds")
        },
    }
    for vocab in options.vocab:
        for dtype in options.dtype:
            name = f"{dtype}, vocabulary {vocab}"
            result[name] = measure(vocab, getattr(torch, dtype), options)
            print(name, json.dumps(result[name], indent=2), sep="\n", file=sys.stderr)
    text = json.dumps(result, indent=2)
    print(text)
    if options.save or options.out:
        path = options.out or Path(__file__).parent / "results" / "train_step.json"
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
