"""Resolves the settings of a run that are not given, with a reason for each."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from miniformer import registry
from miniformer.config import UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import HardwareSettings
from miniformer.train_config import TrainConfig
from miniformer.training.lit_module import DEFAULT_WARMUP_RATIO
from miniformer.training.optim.optimizers import check_optimizer_options
from miniformer.training.optim.schedules import check_schedule_options
from miniformer.training.resume.config import saved_config
from miniformer.training.setup.init_from import config_from_pretrained
from miniformer.training.tuning.data_defaults import resolve_lr
from miniformer.training.tuning.hardware import describe_threads, has_fast_bf16

# Defaults that `Resolution.summary` shows.
_SHOWN_DEFAULTS = (
    "task", "optimizer", "weight_decay", "scheduler", "gradient_clip_val", "seed",
)  # fmt: skip


@dataclasses.dataclass
class Resolution:
    """The settings of a run, resolved so far.

    Args:
        config: the run, with the resolved values that a resumed run keeps.
        given: settings that are given.
        saved: settings of the run to resume, as that run has saved them.
        kind: kind of model: encoder or seq2seq.
        device_type: cpu, cuda or mps.
        precision: float32 or bf16.
        resolved: settings that are not given; of two with one name, the later one counts.
    """

    config: TrainConfig
    given: dict[str, Any]
    saved: dict[str, Any]
    kind: str
    device_type: str
    precision: str
    resolved: list[ResolvedSetting]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.experiment_name or self.config.task

    @property
    def hardware(self) -> HardwareSettings:
        """Devices of the run."""
        return self.config.part(HardwareSettings)

    def changed_settings(self) -> dict[str, Any]:
        """Settings that differ from their defaults."""
        return self.config.non_default_fields()

    def apply(self, settings: Iterable[ResolvedSetting], **changes: Any) -> None:
        """Adds settings and sets their fields, or the keys of `task_config` after a dot.

        Args:
            settings: resolved settings.
            **changes: further fields to set.
        """
        for setting in settings:
            name, _, key = setting.name.partition(".")
            value: Any = setting.value
            if key:
                value = {**getattr(self.config, name), key: value}
            self.config = dataclasses.replace(self.config, **{name: value})
            self.resolved.append(setting)
        self.config = dataclasses.replace(self.config, **changes)

    def summary(self, given: str = "given") -> str:
        """The settings that matter, one a line: given, of the resumed run, resolved or default.

        Args:
            given: title of the settings that are given.
        """
        blocks = {given: self.given, "of the resumed run": self.saved, "resolved": {}}
        defaults = [ResolvedSetting(x, getattr(self.config, x), "default") for x in _SHOWN_DEFAULTS]
        lines = {setting.name: ("resolved", str(setting)) for setting in defaults}
        lines |= {x: (title, f"{x}: {y}") for title in blocks for x, y in blocks[title].items()}
        lines |= {setting.name: ("resolved", str(setting)) for setting in self.resolved}
        order = {field.name: n for n, field in enumerate(dataclasses.fields(self.config))}
        order["vocab_size"] = order["tokenizer"]
        texts = {title: f"settings {title}:" for title in blocks}
        for name in sorted(lines, key=lambda name: order.get(name.partition(".")[0], len(order))):
            title, line = lines[name]
            texts[title] += f"\n  {line}"
        return "\n".join(text for text in texts.values() if "\n" in text)


def resolve_config(config: TrainConfig) -> Resolution:
    """Resolves what needs no data: the kind of model, initial weights, device, learning rate.

    Raises:
        UserError: the accelerator, the logger or an option of the optimizer is not available.
    """
    given, saved = config.given_fields(), {}
    if config.resume is not None:
        earlier = saved_config(Path(config.resume))
        values, earlier_values = config.to_dict(), earlier.to_dict()
        given = {name: x for name, x in values.items() if x != earlier_values[name]}
        saved = {name: x for name, x in earlier.non_default_fields().items() if name not in given}
    device_type = resolve_device_type(config)
    precision = resolve_precision(config, device_type)
    check_environment(config)
    if config.adapter is not None:
        adapters = registry.get("adapter_format", "peft")
        adapters.check(config.adapter, config.adapter_config)
    check_optimizer_options(config.optimizer, config.optimizer_config)
    check_schedule_options(config.scheduler, config.scheduler_config)
    task_class = registry.get("task", config.task)
    kind: str = config.model or task_class.models[0]
    shown = "decoder" if kind == "encoder" and task_class.causal else kind
    comparison = "faster than float32" if precision == "bf16" else "bf16 is not faster"
    resolved = [
        ResolvedSetting("model", shown, f"default of {config.task}"),
        ResolvedSetting("accelerator", device_type, "the fastest that is available"),
        ResolvedSetting("precision", precision, f"{comparison} on this device"),
    ]
    if device_type == "cpu":
        threads = torch.get_num_threads()
        resolved.append(ResolvedSetting("threads", threads, describe_threads(threads)))
    if config.warmup_steps is None and config.scheduler not in ("onecycle", "none"):
        reason = f"default of {config.scheduler}"
        resolved.append(ResolvedSetting("warmup_ratio", DEFAULT_WARMUP_RATIO, reason))
    if config.effective_max_epochs is not None:
        reason = "no limit is given"
        resolved.append(ResolvedSetting("max_epochs", config.effective_max_epochs, reason))
    if config.world_size > 1:
        resolved.append(ResolvedSetting("strategy", "ddp", "default for several devices"))
    if kind == "decoder":  # the class is the same
        kind = "encoder"
        config = dataclasses.replace(config, model_config={**config.model_config, "causal": True})
    if config.resume is None and config.init_from is not None:
        config = config_from_pretrained(config, kind)
    resolved = [setting for setting in resolved if setting.name not in given | saved]
    resolution = Resolution(config, given, saved, kind, device_type, precision, resolved)
    if config.lr is None and not config.find_lr:
        from_scratch = config.init_from is None and config.pretrain is None
        resolution.apply([resolve_lr(config.optimizer, from_scratch=from_scratch)])
    return resolution


def check_environment(config: TrainConfig) -> None:
    """Checks that the accelerator and the logger are available.

    Raises:
        UserError: one is not.
    """
    name = config.accelerator
    missing = (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(f"accelerator={name} is not available on this machine; use cpu or auto")
    for name in ("wandb", "mlflow"):
        if config.logger == name and importlib.util.find_spec(name) is None:
            raise UserError(
                f'logger={name} needs the package {name}; pip install "miniformer[{name}]", '
                "or use tensorboard, csv or none"
            )


def resolve_device_type(hardware: HardwareSettings) -> str:
    """The device type of the accelerator: cpu, cuda or mps."""
    if hardware.accelerator != "auto":
        return hardware.accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(hardware: HardwareSettings, device_type: str) -> str:
    """float32 or bf16: the given precision, or for auto the faster one."""
    if hardware.precision != "auto":
        return hardware.precision
    return "bf16" if has_fast_bf16(device_type) else "float32"
