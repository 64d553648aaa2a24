"""Configs as strict dataclasses. Nothing here imports torch."""

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
