"""TrainConfig: all settings of a training run; each field is a flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from miniformer.config import StrictConfig, TransformerConfig
from miniformer.config.renames import TASK_OPTIONS, TRAIN_FIELDS
from miniformer.config.size_presets import SHAPE_FIELDS, SIZE_PRESETS
from miniformer.config.strict import rename_keys
from miniformer.config.train_settings import (
    BudgetSettings,
    DataSettings,
    EvaluationSettings,
    FieldSettings,
    HardwareSettings,
    ModelSettings,
    OptimizationSettings,
    OutputSettings,
    TrialSettings,
)
from miniformer.registry import unknown_name_message
from miniformer.utils.sources import source_problems

_REQUIRES_VALIDATION = {
    "early_stopping_patience": "the data of the metric",
    "val_check_interval": "the data to validate on",
    "checkpoint_metric": "the data of the metric",
    "average_checkpoints": "the data to evaluate averaged weights on",
    "sample_prompt": "since it is continued at validations",
}
_PATH_FIELDS = (
    "val_path", "test_path", "init_from", "tokenizer", "source_tokenizer", "work_dir", "resume",
)  # fmt: skip
Part = TypeVar("Part", bound=StrictConfig)


# The fields of a dataclass begin with those of its last base class.
@dataclasses.dataclass(frozen=True)
class TrainConfig(
    OutputSettings, HardwareSettings, BudgetSettings, TrialSettings, EvaluationSettings,
    OptimizationSettings, ModelSettings, FieldSettings, DataSettings,
):  # fmt: skip
    """Configuration of a training run: the fields of all its parts.

    Functions take the part that they need; see `part`.
    """

    former_names: ClassVar[Mapping[str, str]] = TRAIN_FIELDS

    def part(self, kind: type[Part]) -> Part:
        """A part of the config, such as `HardwareSettings`."""
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})

    def all_callbacks(self) -> list[str | dict[str, Any]]:
        """Named callbacks of the run, the first of which is its sparse training."""
        own = [] if self.sparse_training is None else [self._sparse_callback()]
        return [*own, *(self.callbacks or [])]

    def _sparse_callback(self) -> dict[str, Any]:
        own: dict[str, Any] = {"type": "sparse_training", **(self.sparse_training or {})}
        if own.get("method", "rigl") == "rigl" and own.get("initial") is None:
            is_trained = self.init_from is not None or self.pretrain is not None
            own["initial"] = "magnitude" if is_trained else "random"
        return own

    @classmethod
    def current_names(
        cls, values: Mapping[str, Any], *, warn: bool = True
    ) -> tuple[dict[str, Any], list[str]]:
        """Also replaces former names within `task_config`, `model_config` and `pretrain`."""
        current, problems = super().current_names(values, warn=warn)

        def replace(name: str, result: tuple[dict[str, Any], list[str]]) -> None:
            current[name] = result[0]
            problems.extend(f"{name}: {problem}" for problem in result[1])

        if isinstance(options := current.get("task_config"), dict):
            table = TASK_OPTIONS.get(str(current.get("task", "language_modeling")), {})
            replace("task_config", rename_keys(options, table, warn=warn))
        if isinstance(fields := current.get("model_config"), dict):
            replace("model_config", TransformerConfig.current_names(fields, warn=warn))
        if isinstance(settings := current.get("pretrain"), dict):
            nested, nested_problems = cls.current_names(
                {"task": "masked_lm", **settings}, warn=warn
            )
            if "task" not in settings:
                del nested["task"]
            replace("pretrain", (nested, nested_problems))
        return current, problems

    def cross_check(self) -> list[str]:
        """Conflicts, each with its fix; each part checks its own fields."""
        return [*super().cross_check(), *self._conflicts_between_parts()]

    def _conflicts_between_parts(self) -> list[str]:
        problems = [
            f"{name} is empty; leave it out or give a path"
            for name in _PATH_FIELDS
            if getattr(self, name) == ""
        ]
        if not self.train_path and self.resume in (None, "auto"):
            problems.append(
                "train_path is missing: name a file to train on, such as train.jsonl or train.csv"
            )
        problems += [
            f"{name} needs val_path, {why}"
            for name, why in _REQUIRES_VALIDATION.items()
            if getattr(self, name) not in (None, 0) and not self._may_validate()  # 0: off
        ]
        if self.val_share and self.val_path is not None:
            problems.append("val_path and val_share both give validation data; leave one out")
        if self.folds is not None and self.val_path is not None:
            problems.append(
                "folds validate on parts of train_path; leave val_path out, or add its files to "
                "train_path"
            )
        warmup, steps = self.warmup_steps, self.max_steps
        if warmup is not None and steps is not None and warmup > steps:
            problems.append(
                f"warmup_steps={warmup} is longer than the run of max_steps={steps}, so the "
                f"learning rate never reaches lr; set at most {steps}"
            )
        if self.memory_limit is not None and self.find_batch_size:
            problems.append(
                "memory_limit and find_batch_size both set the batch size; leave one out"
            )
        if self.strategy == "deepspeed" and self.accumulate_grad_batches > 1:
            problems.append(
                "strategy=deepspeed cannot divide the loss of several batches exactly; "
                "set accumulate_grad_batches=1"
            )
        is_list = not isinstance(self.train_path, str) or self.train_path[:1] in ("{", "[")
        problems += source_problems("train_path", self.train_path) if is_list else ()
        if any(str(path).startswith("[{") for path in (self.val_path, self.test_path)):
            problems.append("val_path and test_path have no weights; name their paths alone")
        problems += self._pretrain_problems() if self.pretrain is not None else ()
        problems += self._sparse_problems() if self.sparse_training is not None else ()
        problems += self._device_problems() if self.world_size > 1 else ()
        return [*problems, *(self._streaming_problems() if self.streaming else ())]

    def _sparse_problems(self) -> list[str]:
        """Conflicts of `sparse_training` with other settings."""
        problems = []
        if self.strategy in ("fsdp2", "deepspeed"):
            problems.append(
                f"sparse_training needs the whole model on each device, and strategy="
                f"{self.strategy} divides it; set strategy=ddp"
            )
        if self.adapter is not None:
            problems.append(
                "sparse_training trains the matrices that an adapter freezes; leave one out"
            )
        return problems

    def _pretrain_problems(self) -> list[str]:
        names = [field.name for field in dataclasses.fields(self)]
        problems = [
            f"pretrain: {unknown_name_message('field', name, names)}"
            for name in self.pretrain or {}
            if name not in names
        ]
        if self.find_lr:
            problems.append("find_lr would run before pretraining; set lr, or leave one out")
        return problems

    def _device_problems(self) -> list[str]:
        return [
            f"{name} supports one device only; leave it out, or set devices=1"
            for name in ("memory_limit", "find_batch_size", "find_lr", "streaming")
            if getattr(self, name)
        ]

    def _may_validate(self) -> bool:
        """Returns whether the run may have validation data."""
        can_hold_out = self.val_share != 0 and not self.streaming
        given = (self.val_path, self.resume, self.folds)
        return can_hold_out or any(item not in (None, "auto") for item in given)

    def _streaming_problems(self) -> list[str]:
        problems = [
            f"{name} has no effect with streaming: {why}; leave it out"
            for name, why in (
                ("num_workers", "the process reads the stream itself"),
                ("max_epochs", "a stream is read once"),
                ("folds", "a stream is read once"),
                ("val_share", "a part of a stream cannot be set aside; name a val_path"),
            )
            if getattr(self, name)
        ]
        if self.pretrain is not None:
            problems.append(
                "pretrain reads the data again, and streaming reads it once; leave one out"
            )
        if self.max_steps is None and self.max_time is None:
            problems.append(
                "streaming needs max_steps or max_time: the length of the stream is unknown"
            )
        return problems

    def overridden_settings(self) -> list[str]:
        """Settings of a new run that the run itself would override.

        The config of a running run has both: the option and its result.
        """
        problems = []
        if self.find_lr and self.lr is not None:
            problems.append(f"find_lr would override lr={self.lr}; leave one of them out")
        if self.find_batch_size and self.batch_size is not None:
            problems.append(
                f"find_batch_size would override batch_size={self.batch_size}; "
                "leave one of them out"
            )
        if self.memory_limit is not None and self.activation_checkpointing != "none":
            problems.append(
                "memory_limit would override activation_checkpointing="
                f"{self.activation_checkpointing}; leave one of them out"
            )
        shape_fields = self.model_config.keys() & set(SHAPE_FIELDS)
        if self.model_size is not None and SIZE_PRESETS[self.model_size].keys() <= shape_fields:
            problems.append(
                f"model_size={self.model_size} has no effect: model_config sets the whole shape; "
                "leave it out"
            )
        return problems
