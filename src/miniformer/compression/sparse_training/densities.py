"""Numbers of weights of each matrix that are not zero."""

from __future__ import annotations

from collections.abc import Sequence


def weight_counts(shapes: Sequence[tuple[int, int]], sparsity: float, erk: bool) -> list[int]:
    """Number of weights of each matrix that are not zero; they sum up to the exact share.

    Args:
        shapes: outputs and inputs of the matrices.
        sparsity: share of all weights that are zero.
        erk: the density of a matrix [O, I] is proportional to (O + I) / (O * I), and at most 1
            (Erdos-Renyi kernel, Evci et al. 2020); False: all have the same.
    """
    sizes = [rows * columns for rows, columns in shapes]
    total = round((1 - sparsity) * sum(sizes))
    weights = (
        [float(rows + columns) for rows, columns in shapes] if erk else [float(n) for n in sizes]
    )
    return _apportion(total, weights, sizes)


def _apportion(total: int, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Divides a number in proportion to weights, with a limit for each part.

    Parts above their limit get it, and the others divide the rest; remainders go to the largest
    fractions.
    """
    full: set[int] = set()
    while True:
        rest = total - sum(limits[i] for i in full)
        scale = rest / max(1e-12, sum(x for i, x in enumerate(weights) if i not in full))
        above = {i for i, x in enumerate(weights) if i not in full and scale * x > limits[i]}
        if not above:
            break
        full |= above
    exact = [float(limits[i]) if i in full else scale * x for i, x in enumerate(weights)]
    counts = [int(x) for x in exact]
    by_fraction = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    missing = total - sum(counts)
    for i in [i for i in by_fraction if counts[i] < limits[i]][:missing]:
        counts[i] += 1
    return counts
