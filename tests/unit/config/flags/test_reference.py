"""Descriptions of fields for the reference page and for `--print_config`."""

import dataclasses

import pytest

from miniformer import registry
from miniformer.config import GenerationConfig, TransformerConfig
from miniformer.config.flags.reference import FieldDescription, describe_fields
from miniformer.config.strict import StrictConfig, option
from miniformer.train_config import TrainConfig

CONFIGS = {"train": TrainConfig, "model": TransformerConfig, "generation": GenerationConfig}


@dataclasses.dataclass(frozen=True)
class Toy(StrictConfig):
    """A config.

    Args:
        size: a size, such as
            3.
        first, second: two names.
        free: anything.
    """

    size: int | None = option(None, low=1, high=2000)
    first: str = option("a", choices=("a", "b"))
    second: str = option("gelu", kind="activation")
    free: dict = option({"x": 1})


def test_description_of_a_field_has_type_default_limits_and_meaning():
    ((heading, fields),) = describe_fields(Toy)
    assert heading == ""
    activations = ", ".join(registry.builtin_names("activation"))
    assert fields == [
        FieldDescription("size", "an integer or null", None, "at least 1, at most 2,000",
                         "a size, such as 3"),
        FieldDescription("first", "a string", "a", "a, b", "two names"),
        FieldDescription("second", "a string", "gelu", activations, "two names"),
        FieldDescription("free", "an object", {"x": 1}, "", "anything"),
    ]  # fmt: skip


@pytest.mark.catches("meaning_of_a_field_is_lost")
@pytest.mark.parametrize("name", [*CONFIGS, *registry.builtin_names("task")])
def test_every_field_is_described(name):
    config = CONFIGS.get(name) or registry.get("task", name)
    described = [field for _, fields in describe_fields(config) for field in fields]
    names = [field.name for field in described]
    assert names == [field.name for field in dataclasses.fields(config)]
    assert [field.name for field in described if not field.meaning] == []
