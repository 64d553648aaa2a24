"""Adapters of a model: adding, selecting and merging them.

with base weights -> `add` for each name -> `use` one, one for each row, or none
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from miniformer.adapters.modules import (
    Adapted,
    AdaptedMatrix,
    Bottleneck,
    BottleneckMixin,
    Selection,
    adapt_matrix,
    adapt_sublayer,
)
from miniformer.adapters.parts import EmbeddingPart, Ia3Part, LoraPart
from miniformer.adapters.row_runtime import make_row_runtime
from miniformer.adapters.settings import (
    AdapterSettings,
    BitFitSettings,
    BottleneckSettings,
    Ia3Settings,
    LoraSettings,
)
from miniformer.adapters.targets import bias_names, find_modules_to_save, find_targets, target_names
from miniformer.config import TransformerConfig, UserError
from miniformer.model.head import Head
from miniformer.registry import unknown_name_message

DEFAULT_NAME = "default"


@dataclasses.dataclass
class AdapterEntry:
    """An adapter of a model.

    Args:
        settings: its settings.
        targets: names of the modules with a part of it.
        saved: whole tensors of it by name: of `modules_to_save`, and the biases of BitFit. They
            replace those of the base while the adapter is in use.
        head: head of the model with the adapter, if it is not that of the base.
        config: config of the model with this head.
    """

    settings: AdapterSettings
    targets: list[str]
    saved: dict[str, nn.Parameter]
    head: nn.Module | None = None
    config: TransformerConfig | None = None


class AdapterState:
    """The adapters of a model; the model holds it as `adapter_state`.

    Attributes:
        entries: adapters by name.
        base: whole tensors of the base that adapters replace; None: not known, since the model was
            read from a directory with the adapter in place.
        base_head: head and config of the base, once an adapter has brought its own.
        selection: see `Selection`.
    """

    def __init__(self) -> None:
        self.entries: dict[str, AdapterEntry] = {}
        self.base: dict[str, nn.Parameter | None] = {}
        self.base_head: tuple[nn.Module, TransformerConfig] | None = None
        self.selection: Selection = None


def state_of(model: Any) -> AdapterState:
    """The adapters of a model.

    Raises:
        UserError: it has none.
    """
    state = vars(model).get("adapter_state")
    if not isinstance(state, AdapterState):
        raise UserError("the model has no adapters; add one with adapters.add")
    return state


def add_adapter(
    model: Any,
    name: str,
    settings: AdapterSettings,
    *,
    keep_base: bool,
    head: tuple[nn.Module, TransformerConfig] | None = None,
) -> None:
    """Adds an adapter to a model and uses it; only its weights are trained.

    Args:
        model: the model.
        name: name of the adapter.
        settings: its settings.
        keep_base: keep copies of the tensors that the adapter replaces, so that it can be disabled.
        head: head and config of the model with the adapter; None: those of the base.

    Raises:
        UserError: the name is taken, or the settings do not fit the model.
    """
    state = vars(model).setdefault("adapter_state", AdapterState())
    if name in state.entries:
        raise UserError(f"the model has an adapter {name!r} already; give another name")
    if any(module.merged is not None for module in adapted_matrices(model)):
        raise UserError("an adapter is merged; call adapters.unmerge first")
    _untie_head(model, settings)
    if head is not None:
        state.base_head = state.base_head or (model.head, model.config)
        model.head, model.config = head
    names, modules = target_names(model, settings), find_modules_to_save(model, settings)
    names = [path for path in names if not any(_within(path, module) for module in modules)]
    parts = {path: _make_part(model, path, settings) for path in names}
    saved = _whole_tensors(model, settings, modules, keep_base=keep_base, new_head=head is not None)
    for path, part in parts.items():
        adapt = adapt_sublayer if isinstance(part, Bottleneck) else adapt_matrix
        adapt(model.get_submodule(path), name, part)
    state.entries[name] = AdapterEntry(settings, names, saved, *(head or ()))
    model.requires_grad_(False)
    use_adapter(model, name)


def _whole_tensors(
    model: Any, settings: AdapterSettings, modules: list[str], *, keep_base: bool, new_head: bool
) -> dict[str, nn.Parameter]:
    """Tensors of an adapter that replace those of the base, which the state of the model keeps."""
    state, saved = state_of(model), dict[str, nn.Parameter]()
    parameters = dict(model.named_parameters())
    biases = bias_names(model) if isinstance(settings, BitFitSettings) else []
    wholes = [key for key in parameters if any(_within(key, module) for module in modules)]
    for key in dict.fromkeys([*biases, *wholes]):
        parameter = parameters[key]
        if new_head and _within(key, "head"):
            saved[key] = parameter
        elif keep_base:
            base = state.base.setdefault(key, parameter)
            saved[key] = nn.Parameter((parameter if base is None else base).detach().clone())
        elif key in state.base:
            raise UserError(f"two adapters replace {key}; load their directories to one base")
        else:
            saved[key], state.base[key] = parameter, None
    return saved


def use_adapter(model: Any, selection: Selection | Sequence[str | None]) -> None:
    """Uses an adapter, one for each row of the next batches, or none; parts of it are trained.

    Raises:
        UserError: there is no adapter of a name, or adapters with whole tensors differ by row.
    """
    state = state_of(model)
    chosen = selection if selection is None or isinstance(selection, str) else tuple(selection)
    for name in chosen if isinstance(chosen, tuple) else (chosen,):
        if name is not None and name not in state.entries:
            raise UserError(unknown_name_message("adapter", str(name), [*state.entries]))
    if isinstance(chosen, tuple):
        wholes = [name for name in chosen if name is not None and state.entries[name].saved]
        if wholes and len(set(chosen)) > 1:
            tensor = next(iter(state.entries[wholes[0]].saved))
            raise UserError(
                f"adapter {wholes[0]!r} replaces {tensor}, so rows cannot differ in it; use one "
                "adapter at a time"
            )
    if any(module.merged is not None for module in adapted_matrices(model)):
        raise UserError("an adapter is merged; call adapters.unmerge first")
    first = chosen[0] if isinstance(chosen, tuple) and chosen else chosen
    entry = state.entries[first] if isinstance(first, str) else None
    own = {} if entry is None else entry.saved
    new_head = None if entry is None else entry.head
    if state.base_head is not None:
        head, config = state.base_head
        if entry is not None and entry.head is not None and entry.config is not None:
            head, config = entry.head, entry.config
        like = next(model.parameters())
        model.head, model.config = head.to(like.device, like.dtype), config
    for key, base in state.base.items():
        if new_head is not None and _within(key, "head"):
            continue
        replacement = own.get(key, base)
        if replacement is None:
            raise UserError(
                f"the base's {key} is not in this model; load the base, and add the adapter's "
                "directory to it"
            )
        _set_parameter(model, key, replacement)
    state.selection = chosen
    model.row_runtime = make_row_runtime if isinstance(chosen, tuple) else None
    for module in adapted_modules(model):
        module.select(chosen)
    used = set(chosen if isinstance(chosen, tuple) else (chosen,))
    for name, adapter in state.entries.items():
        for parameter in [*adapter_parameters(model, name), *adapter.saved.values()]:
            parameter.requires_grad_(name in used)


def adapted_modules(model: nn.Module) -> Iterator[Adapted]:
    """Modules with adapters."""
    return (module for module in model.modules() if isinstance(module, Adapted))


def adapted_matrices(model: nn.Module) -> Iterator[AdaptedMatrix]:
    """Linear maps with adapters."""
    return (module for module in model.modules() if isinstance(module, AdaptedMatrix))


def adapter_parameters(model: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """Parameters of the parts of an adapter."""
    for module in adapted_modules(model):
        if name in module.adapters:
            yield from module.adapters[name].parameters()


def merge_adapter(model: Any) -> None:
    """Computes the weights with the adapter in use, so that calls cost what the base costs.

    Raises:
        UserError: no adapter, or several by row, or one that is no matrix is in use.
    """
    name = state_of(model).selection
    if not isinstance(name, str):
        raise UserError("adapters.merge needs one adapter in use; call adapters.use with its name")
    if any(name in m.adapters for m in adapted_modules(model) if isinstance(m, BottleneckMixin)):
        raise UserError(f"adapter {name!r} is a bottleneck, which no weight of the base expresses")
    for module in adapted_matrices(model):
        module.merge()


def unmerge_adapter(model: Any) -> None:
    """Reverses `merge_adapter`."""
    state_of(model)
    for module in adapted_matrices(model):
        module.unmerge()


def _make_part(model: Any, path: str, settings: AdapterSettings) -> Any:
    """The part of an adapter at a module."""
    module = model.get_submodule(path)
    if isinstance(settings, BottleneckSettings):
        like = next(p for p in model.parameters() if p.is_floating_point())
        return Bottleneck(model.config.d_model, settings, like)
    weight = module.base_weight() if isinstance(module, AdaptedMatrix) else _weight(module, path)
    if isinstance(settings, Ia3Settings):
        if isinstance(module, nn.Embedding | Head):
            raise UserError(f"adapter_config: {path} is no linear map of a layer; leave it out")
        inputs = find_targets(model, settings.input_names, "input_targets")
        return Ia3Part(weight, on_inputs=path in inputs)
    assert isinstance(settings, LoraSettings)
    rank, limit = settings.rank(path), min(weight.shape)
    if rank > limit:
        raise UserError(
            f"adapter_config: r={rank} at {path} {list(weight.shape)} is above {limit}, the rank "
            "of the matrix; lower r, or set rank_pattern"
        )
    if isinstance(module, nn.Embedding):
        return _embedding_part(model, path, settings, weight)
    is_layered = isinstance(module, Head) and (module.dense is not None or module.norm is not None)
    if is_layered or (isinstance(module, Head) and settings.dropout):
        raise UserError(
            "adapter_config: head: only one matrix without dropout can have an adapter; name "
            "it in modules_to_save"
        )
    return LoraPart(
        weight,
        rank,
        settings.scale(path),
        dropout=settings.dropout,
        init=settings.init,
        dora=settings.dora,
    )


def _embedding_part(model: Any, path: str, settings: LoraSettings, weight: Tensor) -> EmbeddingPart:
    names = find_targets(model, settings.targets, "targets") if settings.targets else []
    if path in names and (settings.dora or settings.init == "pissa"):
        raise UserError("adapter_config: an embedding has plain LoRA only; leave dora and init out")
    tokens = settings.new_tokens if path == "embedding" else []
    if outside := [token for token in tokens if token >= len(weight)]:
        raise UserError(
            f"adapter_config: new_tokens: {outside[0]} is not below the vocabulary size "
            f"{len(weight)}; add the tokens to the tokenizer and the model first"
        )
    rank = settings.rank(path) if path in names else 0
    return EmbeddingPart(weight, rank, settings.scale(path), tokens)


def _weight(module: Any, path: str) -> Tensor:
    if hasattr(type(module), "adapted_class"):
        quantized: Tensor = module.effective_weight()
        return quantized
    parameter = module._parameters.get("weight")
    if not isinstance(module, nn.Linear | nn.Embedding | Head) or parameter is None:
        raise UserError(f"adapter_config: {path}: a {type(module).__name__} cannot be adapted")
    weight: Tensor = parameter
    return weight


def _untie_head(model: Any, settings: AdapterSettings) -> None:
    """Gives a tied head a weight of its own, if an adapter of the embedding or the head needs it.

    Raises:
        UserError: the head is tied, and the settings do not allow that.
    """
    if not isinstance(settings, LoraSettings) or not model.head.tied:
        return
    targets = settings.targets if isinstance(settings.targets, list) else []
    if not {"embedding", "head"} & {*targets}:
        return
    if not settings.untie_head:
        raise UserError(
            "adapter_config: the head is tied to the embedding, so an adapter of one would change "
            "both; set untie_head to true, or leave embedding and head out of targets"
        )
    weight = model.embedding._parameters["weight"]
    model.head.tied = False
    model.head.weight = nn.Parameter(weight.detach().clone())
    model.config = dataclasses.replace(copy.deepcopy(model.config), tie_embeddings=False)


def _set_parameter(model: nn.Module, key: str, tensor: nn.Parameter) -> None:
    path, _, name = key.rpartition(".")
    module, current = model.get_submodule(path), model.get_parameter(key)
    if current is not tensor:
        if tensor.device != current.device or tensor.dtype != current.dtype:
            tensor.data = tensor.data.to(current)
        module._parameters[name] = tensor


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
