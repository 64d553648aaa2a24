"""The modules of a model that an adapter changes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import nn

from miniformer.adapters.settings import (
    ALL_LINEAR,
    AdapterSettings,
    BitFitSettings,
    BottleneckSettings,
    Ia3Settings,
    LoraSettings,
    name_matches,
)
from miniformer.config import UserError
from miniformer.model.matrices import layer_of, named_components

_SUBLAYERS = {
    "houlsby": ("attention", "cross_attention", "feed_forward"),
    "pfeiffer": ("feed_forward",),
}


def adaptable_modules(model: nn.Module) -> dict[str, Any]:
    """Linear maps of a model by name, the embeddings of tokens, and an untied head."""
    modules: dict[str, Any] = {}
    for name, module in named_components(model):
        is_linear = isinstance(module, nn.Linear) or hasattr(module, "effective_weight")
        is_head = name == "head" and getattr(module, "weight", None) is not None
        if is_linear or isinstance(module, nn.Embedding) or is_head:
            modules[name] = module
    return modules


def find_targets(model: nn.Module, targets: str | Iterable[str], option: str) -> list[str]:
    """Names of the modules that targets name.

    Args:
        model: the model.
        targets: "all-linear", or names of modules or their ends.
        option: the option, for messages.

    Raises:
        UserError: a target matches nothing.
    """
    modules = adaptable_modules(model)
    if targets == ALL_LINEAR:
        return [
            name
            for name, module in modules.items()
            if layer_of(name) is not None and not isinstance(module, nn.Embedding)
        ]
    targets = [targets] if isinstance(targets, str) else list(targets)
    names: list[str] = []
    for target in targets:
        matches = [name for name in modules if name_matches(name, target)]
        if not matches:
            raise UserError(_no_match(option, target, modules))
        names += [name for name in matches if name not in names]
    if not names:
        raise UserError(f"adapter_config: {option} is empty; name at least one matrix")
    return names


def find_modules_to_save(model: Any, settings: AdapterSettings) -> list[str]:
    """Names of the modules that are trained as a whole.

    Raises:
        UserError: a name matches no module, or a module without weights.
    """
    if settings.modules_to_save is None:
        return ["head"] if model.config.output_dim is not None else []
    modules = dict(model.named_modules())
    names: list[str] = []
    for target in settings.modules_to_save:
        matches = [
            name
            for name, module in modules.items()
            if name and name_matches(name, target) and next(module.parameters(), None) is not None
        ]
        if not matches:
            raise UserError(_no_match("modules_to_save", target, modules))
        names += [name for name in matches if name not in names]
    return [name for name in names if not any(name.startswith(f"{outer}.") for outer in names)]


def check_patterns(settings: AdapterSettings, names: list[str]) -> None:
    """Checks the keys of `rank_pattern` and `alpha_pattern`.

    Raises:
        UserError: a key matches none of the targets.
    """
    if not isinstance(settings, LoraSettings):
        return
    for option in ("rank_pattern", "alpha_pattern"):
        for key in getattr(settings, option):
            if not any(name_matches(name, key) for name in names):
                raise UserError(_no_match(option, key, names))


def target_names(model: nn.Module, settings: AdapterSettings) -> list[str]:
    """Names of the modules that an adapter changes, without those that it saves as a whole.

    Raises:
        UserError: a target matches nothing.
    """
    if isinstance(settings, LoraSettings):
        names = find_targets(model, settings.targets, "targets") if settings.targets else []
        if settings.new_tokens and "embedding" not in names:
            names.append("embedding")
        if not names:
            raise UserError("adapter_config: targets is empty; name at least one matrix")
        check_patterns(settings, names)
        return names
    if isinstance(settings, Ia3Settings):
        outputs = find_targets(model, settings.output_names, "targets")
        inputs = find_targets(model, settings.input_names, "input_targets")
        if both := [name for name in inputs if name in outputs]:
            raise UserError(f"adapter_config: {both[0]} is in targets and in input_targets")
        return [*outputs, *inputs]
    if isinstance(settings, BottleneckSettings):
        kinds = _SUBLAYERS[settings.placement]
        return [
            name
            for name, _ in model.named_modules()
            if layer_of(name) is not None and name.rpartition(".")[2] in kinds
        ]
    assert isinstance(settings, BitFitSettings)
    return []


def bias_names(model: nn.Module) -> list[str]:
    """Names of the biases in layers, which BitFit trains.

    Raises:
        UserError: there is none.
    """
    names = [
        name
        for name, _ in model.named_parameters()
        if layer_of(name) is not None and name.endswith(".bias")
    ]
    if not names:
        raise UserError("adapter=bitfit: the layers of this model have no biases; use lora or ia3")
    return names


def _no_match(option: str, target: str, known: Iterable[str]) -> str:
    names = [name for name in known if name]
    ends = list(dict.fromkeys([name.rpartition(".")[2] for name in names if layer_of(name)]))
    others = [name for name in names if not layer_of(name)]
    listed = [name for name in [*ends, *others] if not name.isdigit()]
    closest = difflib.get_close_matches(target, [*listed, *names], n=1, cutoff=0.4)
    hint = f"; did you mean {closest[0]!r}?" if closest else ""
    return (
        f"adapter_config: {option}: {target!r} matches nothing{hint} "
        f"There are: {', '.join(listed[:24])}"
    )
