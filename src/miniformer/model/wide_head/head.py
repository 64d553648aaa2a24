"""Linear head over features of an input, in addition to the Transformer (Cheng et al. 2016).

A Transformer needs many examples to learn what single words, phrases or shapes of a series mean. A
linear model of suitable features needs few, and errs on other inputs. In evaluation the model's
outputs are a weighted sum of both; in training, those of the Transformer alone. The head is fitted
before training (`miniformer.training.tuning.wide_head`): its values are buffers, not parameters.

The features are those of one or several groups, side by side. A group is a module that maps the
inputs of the model to `SparseFeatures` or to a dense tensor; `FEATURE_TYPES` has one for each type.

Letters: B batch, L features of an example that are not 0, K features, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig
from miniformer.config.model_checks import wide_feature_settings
from miniformer.model.wide_head.characters import CharacterFeatures
from miniformer.model.wide_head.kernels import KernelFeatures
from miniformer.model.wide_head.ngrams import NgramFeatures, SecondTextFeatures
from miniformer.model.wide_head.overlap import OverlapFeatures
from miniformer.model.wide_head.rbf import RbfFeatures
from miniformer.model.wide_head.series import NumberFeatures, StatisticFeatures
from miniformer.model.wide_head.sparse import Inputs, linear_outputs
from miniformer.model.wide_head.word_context import WordFeatures

FEATURE_TYPES: dict[str, type[nn.Module]] = {
    "ngrams": NgramFeatures,
    "second_text": SecondTextFeatures,
    "characters": CharacterFeatures,
    "numbers": NumberFeatures,
    "statistics": StatisticFeatures,
    "kernels": KernelFeatures,
    "overlap": OverlapFeatures,
    "words": WordFeatures,
}


def make_features(group: Mapping[str, Any]) -> Any:
    """Module of a group of features, not yet fitted.

    Args:
        group: an item of the config's `wide_head`.
    """
    settings = wide_feature_settings(dict(group))
    kind = settings.pop("type")
    if kind == "rbf":
        return RbfFeatures(settings["size"], make_features(settings["of"]))
    return FEATURE_TYPES[kind](**settings)


class WideHead(nn.Module):
    """Linear head over groups of features, and the weights of the sum of both outputs.

    Args:
        config: `wide_head` and `output_dim`.

    Attributes:
        groups: modules of the groups of features, each with its `size`.
        weight, bias: of the linear head, [K, C] and [C]; for `ordered_outputs` [K, 1] and [C].
        mix: weights of the Transformer's and of this head's outputs, [2].
        next_mix: those that take effect at the next validation, [2].
        recorded: outputs of the Transformer and of the linear head of each call; None: not kept.
    """

    weight: Tensor
    bias: Tensor
    mix: Tensor
    next_mix: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        groups = [make_features(group) for group in config.wide_head or ()]
        self.groups: Any = nn.ModuleList(groups)
        size, outputs = sum(group.size for group in groups), config.output_dim or 1
        self.recorded: list[tuple[Tensor, Tensor]] | None = None
        columns = 1 if config.ordered_outputs else outputs
        self.register_buffer("weight", torch.zeros(size, columns))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("mix", torch.tensor([1.0, 0.0]))
        self.register_buffer("next_mix", torch.tensor([1.0, 0.0]))

    @property
    def stored_tables(self) -> tuple[str, ...]:
        """Buffers that can be stored in half of their bytes; see `weight_storage.named_tables`.

        The weights of n-grams, whose features have a norm of 1: rounding changes an output little.
        Other features may have large weights that cancel each other.
        """
        is_small = all(isinstance(x, NgramFeatures) and not x.counts for x in self.groups)
        return ("weight",) if is_small else ()

    def forward(self, outputs: Tensor, inputs: Inputs) -> Tensor:
        """Weighted sum of the Transformer's outputs and those of the linear head, [B, ..., C].

        Args:
            outputs: of the Transformer, [B, ..., C].
            inputs: tensors of the batch by name, such as `inputs` and `attention_mask`.
        """
        deep, wide = outputs.float(), self.linear(inputs)
        if self.recorded is not None:
            self.recorded.append((deep, wide))
        return self.mix[0] * deep + self.mix[1] * wide

    def linear(self, inputs: Inputs) -> Tensor:
        """Outputs of the linear head, float32 [B, ..., C]; see `forward`."""
        outputs, first = self.bias.float(), 0
        for group in self.groups:
            weight = self.weight[first : first + group.size].float()
            first += group.size
            outputs = outputs + linear_outputs(group(inputs), weight)
        return outputs
