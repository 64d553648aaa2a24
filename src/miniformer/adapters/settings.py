"""Settings of adapters: one strict dataclass for each method; each field is an option."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from miniformer.config import ConfigError, StrictConfig, UserError
from miniformer.config.strict import number_problems, option
from miniformer.registry import unknown_name_message

ALL_LINEAR = "all-linear"
INITS = ("default", "gaussian", "pissa")


@dataclasses.dataclass(frozen=True)
class AdapterSettings(StrictConfig):
    """Settings that all methods have.

    Args:
        modules_to_save: modules that are trained as a whole and saved with the adapter, such as
            ["head"]; null: the head of a model with `output_dim`.
    """

    method: ClassVar[str] = ""
    is_linear: ClassVar[bool] = True  # the adapted matrix is a matrix, so it can be merged

    modules_to_save: list[str] | None = option(None)

    def to_options(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON."""
        return self.non_default_fields()


@dataclasses.dataclass(frozen=True)
class LoraSettings(AdapterSettings):
    """LoRA (Hu et al. 2021): a trained product of two thin matrices is added to a matrix.

    Args:
        r: rank of the product.
        alpha: the product is scaled by alpha / r, or with rslora by alpha / sqrt(r).
        targets: names of matrices, or their ends, such as ["q_proj", "v_proj"], or "all-linear":
            the linear maps of all layers. "embedding" and "head" can be named.
        dropout: dropout of the inputs of the product, in training.
        rslora: scale of rsLoRA (Kalajdzievski 2023).
        dora: the direction and the length of each row are trained apart (DoRA, Liu et al. 2024).
        init: initial product of zero with uniform (default) or normal (gaussian) A; pissa: the
            largest singular vectors of the matrix, whose product is subtracted (Meng et al. 2024).
        rank_pattern: ranks by name of a matrix or its end, such as {"o_proj": 16}.
        alpha_pattern: alphas by name in the same way.
        new_tokens: ids of tokens whose rows of the embedding are trained.
        untie_head: make a tied head a matrix of its own before an adapter of the embedding or head.
    """

    method: ClassVar[str] = "lora"

    r: int = option(8, low=1)
    alpha: float = option(8.0, above=0)
    targets: str | list[str] = option(ALL_LINEAR)
    dropout: float = option(0.0, low=0, high=0.99)
    rslora: bool = option(False)
    dora: bool = option(False)
    init: str = option("default", choices=INITS)
    rank_pattern: dict[str, Any] = option({})
    alpha_pattern: dict[str, Any] = option({})
    new_tokens: list[int] = option([])
    untie_head: bool = option(False)

    def cross_check(self) -> list[str]:
        """See `StrictConfig`."""
        problems = super().cross_check()
        for name, rank in self.rank_pattern.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                problems.append(f"rank_pattern: {name}: must be an integer above 0, not {rank!r}")
        for name, alpha in self.alpha_pattern.items():
            if isinstance(alpha, bool) or not isinstance(alpha, int | float):
                problems.append(f"alpha_pattern: {name}: must be a number, not {alpha!r}")
            else:
                problems += number_problems(f"alpha_pattern: {name}", alpha, above=0)
        if self.dora and self.init == "pissa":
            problems.append("dora and init=pissa exclude each other; leave one of them out")
        if any(token < 0 for token in self.new_tokens):
            problems.append(f"new_tokens must be ids of at least 0, not {min(self.new_tokens)}")
        if len(set(self.new_tokens)) < len(self.new_tokens):
            problems.append("new_tokens names an id twice")
        return problems

    def rank(self, name: str) -> int:
        """Rank at a matrix."""
        return int(match_pattern(self.rank_pattern, name, self.r))

    def scale(self, name: str) -> float:
        """Factor of the product at a matrix."""
        alpha, rank = match_pattern(self.alpha_pattern, name, self.alpha), self.rank(name)
        return float(alpha) / (math.sqrt(rank) if self.rslora else rank)


@dataclasses.dataclass(frozen=True)
class DoraSettings(LoraSettings):
    """LoRA with `dora` on: see `LoraSettings`."""

    method: ClassVar[str] = "dora"

    dora: bool = option(True)


@dataclasses.dataclass(frozen=True)
class Ia3Settings(AdapterSettings):
    """IA3 (Liu et al. 2022): trained factors of outputs, and of the inputs of the last matrix.

    Args:
        targets: matrices with a factor for each output; null: keys and values.
        input_targets: matrices with a factor for each input; null: `down_proj`.
    """

    method: ClassVar[str] = "ia3"

    targets: list[str] | None = option(None)
    input_targets: list[str] | None = option(None)

    @property
    def output_names(self) -> list[str]:
        """Names of the matrices whose outputs are scaled."""
        return ["k_proj", "v_proj"] if self.targets is None else self.targets

    @property
    def input_names(self) -> list[str]:
        """Names of the matrices whose inputs are scaled."""
        return ["down_proj"] if self.input_targets is None else self.input_targets


@dataclasses.dataclass(frozen=True)
class BottleneckSettings(AdapterSettings):
    """Bottleneck adapters: x + up(activation(down(x))) after a sub-layer.

    Args:
        placement: houlsby: after attention and feed-forward (Houlsby et al. 2019); pfeiffer: after
            the feed-forward (Pfeiffer et al. 2021).
        size: width of the bottleneck.
        activation: registered activation.
    """

    method: ClassVar[str] = "bottleneck"
    is_linear: ClassVar[bool] = False

    placement: str = option("houlsby", choices=("houlsby", "pfeiffer"))
    size: int = option(16, low=1)
    activation: str = option("relu", kind="activation")


@dataclasses.dataclass(frozen=True)
class BitFitSettings(AdapterSettings):
    """BitFit (Ben Zaken et al. 2022): the biases of the layers are trained."""

    method: ClassVar[str] = "bitfit"


METHODS: dict[str, type[AdapterSettings]] = {
    settings.method: settings
    for settings in (LoraSettings, DoraSettings, Ia3Settings, BottleneckSettings, BitFitSettings)
}


def make_settings(method: str, options: Mapping[str, Any]) -> AdapterSettings:
    """Settings of a method.

    Raises:
        UserError: the method or an option is unknown, or a value is invalid.
    """
    if method not in METHODS:
        raise UserError(unknown_name_message("adapter", method, [*METHODS]))
    try:
        return METHODS[method].from_dict(options)
    except ConfigError as error:
        raise UserError(f"adapter_config: {error}") from None


def match_pattern(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """Value of the first key that is a name, or its end after a dot."""
    for key, value in pattern.items():
        if name_matches(name, key):
            return value
    return default


def name_matches(name: str, target: str) -> bool:
    """True if a target is a name of a module, or its end after a dot."""
    return name == target or name.endswith(f".{target}")
