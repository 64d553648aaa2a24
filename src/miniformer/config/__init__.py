"""Configs as strict dataclasses. Nothing here imports torch.

The folder has more than 12 files because each config has its own.
"""

from miniformer.config.errors import (
    ConfigError,
    InputError,
    NoEffectWarning,
    PluginWarning,
    RenamedWarning,
    UserError,
)
from miniformer.config.generation_config import GenerationConfig
from miniformer.config.model_config import TransformerConfig
from miniformer.config.strict import StrictConfig, option

__all__ = [
    "ConfigError",
    "GenerationConfig",
    "InputError",
    "NoEffectWarning",
    "PluginWarning",
    "RenamedWarning",
    "StrictConfig",
    "TransformerConfig",
    "UserError",
    "option",
]
