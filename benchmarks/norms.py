"""Time of RMSNorm, forward and backward, compared with torch's and with the plain formula.

    python benchmarks/norms.py [--rounds 30] [--save]

They alternate in one process, in a different order each round. `time_ratio` is the median over
rounds of Miniformer's time divided by that of the other: below 1, Miniformer is faster.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from environment import environment
from miniformer.model.norm import RMSNorm

RESULTS = Path(__file__).parent / "results" / "norms.json"
SHAPES = [(2048, 128), (2048, 384), (2048, 768)]  # tokens, width


class PlainFormula(torch.nn.Module):
    """The formula as separate operations."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        scale = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return (x.float() * scale).to(x.dtype) * self.weight


def measure(tokens, width, dtype, rounds):
    """Median seconds of each implementation, and ratios."""
    contestants = {
        "miniformer": RMSNorm(width, eps=1e-5),
        "torch": torch.nn.RMSNorm(width, eps=1e-5),
        "written out": PlainFormula(width),
    }
    x = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    grad, seconds = torch.randn(tokens, width, dtype=dtype), {name: [] for name in contestants}
    exact = contestants["torch"](x.float())
    for name, norm in contestants.items():
        norm.to(dtype)
        torch.testing.assert_close(norm(x).float(), exact, rtol=0.02, atol=0.02, msg=name)
    for turn in range(rounds + 3):
        names = list(contestants)
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            start_time = time.perf_counter()
            for _ in range(10):
                contestants[name](x).backward(grad)
            if turn >= 3:
                seconds[name].append((time.perf_counter() - start_time) / 10)
    row = {"tokens": tokens, "width": width, "dtype": str(dtype).removeprefix("torch.")}
    row |= {f"{name}_ms": round(1e3 * statistics.median(s), 3) for name, s in seconds.items()}
    for name in list(contestants)[1:]:
        pairs = zip(seconds["miniformer"], seconds[name], strict=True)
        row[f"time_ratio to {name}"] = round(statistics.median(a / b for a, b in pairs), 3)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for tokens, width in SHAPES:
            rows.append(measure(tokens, width, dtype, given.rounds))
            print(json.dumps(rows[-1]), flush=True)
    if given.save:
        result = {"environment": environment(), "rounds": given.rounds, "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
