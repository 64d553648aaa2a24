"""The request of `prune`: `heads=0.5,ffn=0.5,layers=2`, and `0.5` or `2:4`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from miniformer.config import UserError

SHARES = ("heads", "ffn")
COUNTS = ("layers", "encoder_layers", "decoder_layers")
PATTERN = "2:4"  # two of each four consecutive inputs of a row are zero
METHODS = ("magnitude", "wanda", "sparsegpt")
Sparsity = float | str  # the share of zeros, or `PATTERN`


def parse_removal(remove: str | Mapping[str, Any]) -> dict[str, float]:
    """Shares of heads and feed-forward columns, and numbers of layers, by name.

    Args:
        remove: `heads=0.5,ffn=0.5,layers=2`, or a mapping.

    Raises:
        UserError: a name is unknown or used twice, a share is not within (0, 1), or a number of
            layers is not a whole one from 1.
    """
    items: list[tuple[str, Any]]
    if isinstance(remove, Mapping):
        items = [*remove.items()]
    elif isinstance(remove, str):
        items = [
            (name.strip(), value.strip())
            for name, _, value in (part.partition("=") for part in remove.split(","))
        ]
    else:
        raise UserError(f"remove takes a text such as heads=0.5,ffn=0.5, not {remove!r}")
    parts: dict[str, float] = {}
    for name, value in items:
        if name in parts:
            raise UserError(f"remove: {name} is given twice")
        parts[name] = _number(name, value)
    if "layers" in parts and len(parts.keys() & {*COUNTS}) > 1:
        raise UserError("remove: layers is of both stacks; leave it out to choose by stack")
    return parts


def _number(name: str, value: Any) -> float:
    known = (*SHARES, *COUNTS)
    if name not in known:
        closest = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise UserError(f"remove: {name!r} is none of {', '.join(known)}{hint}")
    if value == "":
        raise UserError(f"remove: {name} has no value, such as {name}=0.5 or layers=2")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if name in SHARES and not 0 < number < 1:
        raise UserError(f"remove: {name} must be a share between 0 and 1, such as 0.5, not {value}")
    if name in COUNTS and not (number >= 1 and number.is_integer()):
        raise UserError(f"remove: {name} must be a number of layers from 1, not {value}")
    return number


def parse_sparsity(sparsity: str | float) -> Sparsity:
    """The share of zeros, or `2:4`.

    Args:
        sparsity: `0.5` or `2:4`, or a number.

    Raises:
        UserError: it is neither `2:4` nor a share within (0, 1).
    """
    if isinstance(sparsity, str) and sparsity.strip() == PATTERN:
        return PATTERN
    try:
        share = float(sparsity)
    except (TypeError, ValueError):
        share = float("nan")
    if isinstance(sparsity, bool) or not 0 < share < 1:
        raise UserError(
            f"sparsity={sparsity!r} must be a share between 0 and 1, such as 0.5, or {PATTERN}"
        )
    return share


def choose_method(method: str | None, *, has_records: bool) -> str:
    """The method of sparsity: without a choice `sparsegpt` with records, else `magnitude`.

    Raises:
        UserError: it is unknown, or needs records.
    """
    if method is None:
        return "sparsegpt" if has_records else "magnitude"
    if method not in METHODS:
        closest = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise UserError(f"method={method!r} is none of {', '.join(METHODS)}{hint}")
    if method != "magnitude" and not has_records:
        raise UserError(
            f"method={method} needs calibrate: records, such as those of training; without them "
            "use method=magnitude"
        )
    return method


def count_removed(name: str, share: float, total: int) -> int:
    """Number of parts that a share is, rounded to the nearest.

    Raises:
        UserError: that is none of them, or all.
    """
    count = int(share * total + 0.5)
    if 0 < count < total:
        return count
    amount = "none" if count == 0 else "all"
    limits = f"{1 / total:.3g} to {(total - 1) / total:.3g}" if total > 1 else "no share"
    raise UserError(
        f"remove: {name}={share:g} of {total} is {amount} of them; {limits} can be removed"
    )
