"""Former names of settings: accepted with one warning, and silently in stored files."""

import json
import warnings

import pytest

from miniformer import cli, registry
from miniformer.checkpoint.artifacts import stored_settings
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import ConfigError, GenerationConfig, RenamedWarning, TransformerConfig
from miniformer.config.renames import TASK_OPTIONS
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.train_config import TrainConfig
from tests.kit import tiny_model

TRAIN_VALUES = {
    "memory": "4GB", "size": "tiny", "val_interval": 5, "warm_start": {"max_steps": 3},
    "warmup_share": 0.2,
}  # fmt: skip
GENERATION_VALUES = {
    "bad_ids": [[3]], "beam_groups": 2, "length_norm": "gnmt", "no_repeat_ngram": 2, "slide": True,
    "stop": ["x"], "stop_ids": [4], "weights": "int8",
}  # fmt: skip
RENAMED = [
    *((TrainConfig, former, value) for former, value in TRAIN_VALUES.items()),
    *((GenerationConfig, former, value) for former, value in GENERATION_VALUES.items()),
]
NEEDED = {TrainConfig: {"train_path": "a.txt", "val_path": "b.txt"},
          GenerationConfig: {"num_beams": 2}}  # fmt: skip


def load(config, **values):
    """The config and the messages of its `RenamedWarning`s."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RenamedWarning)
        result = config.from_dict({**NEEDED.get(config, {}), **values})
    assert all(item.filename == __file__ for item in caught)
    return result, [str(item.message) for item in caught]


@pytest.mark.catches(
    "former_names_are_unknown", "former_names_have_no_warning", "former_name_is_forgotten"
)
@pytest.mark.parametrize(("config", "former", "value"), RENAMED)
def test_former_name_of_a_field_is_accepted_with_one_warning(config, former, value):
    name = config.former_names[former]
    result, messages = load(config, **{former: value})
    assert getattr(result, name) == value
    assert messages == [f"{former} is deprecated and will be removed; use {name}"]
    assert load(config, **{name: value}) == (result, [])
    assert former not in result.to_dict()


@pytest.mark.catches("former_name_wins_over_the_current_one")
@pytest.mark.parametrize(("config", "former", "value"), RENAMED)
def test_field_given_under_both_names_is_an_error(config, former, value):
    name = config.former_names[former]
    message = f"{former} is the former name of {name}; leave {former} out"
    with pytest.raises(ConfigError, match=message):
        config.from_dict({**NEEDED[config], former: value, name: value})


@pytest.mark.catches("nested_former_names_stay")
def test_former_names_within_a_training_config_are_replaced():
    result, messages = load(
        TrainConfig,
        task="regression",
        task_config={"next_of": 1, "mark_shared": False},
        model_config={"position": "relative"},
        warm_start={"val_interval": 5, "task_config": {"mark_shared": False}},
    )
    assert result.task_config == {"target_delta_of": 1, "shared_token_types": False}
    assert result.model_config == {"position": "t5_relative"}
    assert result.pretrain == {
        "val_check_interval": 5, "task_config": {"shared_token_types": False},
    }  # fmt: skip
    assert len(messages) == 6
    assert (
        "position=relative is deprecated and will be removed; use position=t5_relative" in messages
    )
    with pytest.raises(ConfigError, match="task_config: mean is the former name of target_mean"):
        load(TrainConfig, task="regression", task_config={"mean": 1.0, "target_mean": 2.0})


def test_constructor_replaces_nested_former_names():
    with pytest.warns(RenamedWarning, match="use shared_token_types"):
        config = TrainConfig(
            train_path="a", task="classification", task_config={"mark_shared": True}
        )
    assert config.task_config == {"shared_token_types": True}


@pytest.mark.parametrize("name", TASK_OPTIONS)
def test_former_task_options_are_those_of_the_task(name):
    task = registry.get("task", name)
    assert task.former_names == TASK_OPTIONS[name]
    assert set(task.former_names.values()) <= set(task.__dataclass_fields__)


def test_option_of_another_task_is_not_renamed():
    config = TrainConfig(train_path="a", task="seq2seq", task_config={"mean": 1.0})
    assert config.task_config == {"mean": 1.0}


@pytest.mark.catches("former_registered_names_are_unknown")
def test_former_registered_names_are_accepted():
    result, messages = load(TransformerConfig, position="relative")
    assert (result.position, len(messages)) == ("t5_relative", 1)
    with pytest.warns(RenamedWarning, match="use task=embedding"):
        assert TrainConfig(train_path="a", task="encoding").task == "embedding"
    assert registry.get("task", "encoding") is registry.get("task", "embedding")
    assert "relative" not in registry.names("position")


def test_registered_name_that_was_a_former_name_wins(monkeypatch):
    monkeypatch.setitem(registry._registered["position"], "relative", object)
    assert TransformerConfig(position="relative").position == "relative"
    assert registry.get("position", "relative") is object


def test_unknown_name_is_compared_with_current_names():
    with pytest.raises(ConfigError, match="did you mean 'memory_limit'"):
        TrainConfig.from_dict({"train_path": "a", "memry_limit": "4GB"})
    with pytest.raises(ConfigError, match=r"unknown position 'relativ'.*t5_relative"):
        TransformerConfig(position="relativ")


@pytest.mark.catches("stored_former_names_warn")
def test_stored_files_load_without_a_warning(tmp_path):
    stored = {
        **NEEDED[TrainConfig], "memory": "4GB", "task": "regression",
        "task_config": {"spread": 2.0}, "model_config": {"position": "relative"},
    }  # fmt: skip
    (tmp_path / "train_config.json").write_text(json.dumps(stored))
    config = TrainConfig.from_file(tmp_path / "train_config.json")  # a warning is an error here
    assert (config.memory_limit, config.task_config) == ("4GB", {"target_std": 2.0})
    assert stored_settings({"task": "encoding", "mark_shared": None}) == {
        "task": "embedding", "shared_token_types": False,
    }  # fmt: skip


@pytest.mark.catches("stored_pairs_lose_their_marks")
@pytest.mark.parametrize(
    ("stored", "meaning"),
    [
        ({"task": "classification", "mark_shared": None, "input_kind": "pair"}, True),
        ({"task": "regression", "shared_token_types": None, "input_kind": "pair"}, True),
        ({"task": "masked_lm", "shared_token_types": None, "input_kind": "pair"}, False),
        ({"task": "classification", "shared_token_types": None, "input_kind": "text"}, False),
        ({"task": "classification", "shared_token_types": False, "input_kind": "pair"}, False),
    ],
)
def test_stored_settings_without_a_value_keep_their_meaning(stored, meaning):
    assert stored_settings(stored)["shared_token_types"] is meaning


def test_stored_settings_drops_automatic_values():
    assert stored_settings({"task": "language_modeling", "prepend_bos": None}) == {
        "task": "language_modeling"
    }
    assert stored_settings({"task": "regression", "next_of": "auto"}) == {"task": "regression"}


@pytest.mark.parametrize("where", ["flag", "yaml", "json"])
def test_command_line_accepts_former_names(where, tmp_path, capsys):
    config = tmp_path / f"config.{where}"
    values = {"memory": "4GB", "warmup_share": 0.1}
    config.write_text(json.dumps(values))  # which is YAML as well
    flags = ["--memory", "4GB", "--warmup_share=0.1"] if where == "flag" else ["--config", config]
    assert cli.main(["train", "--train_path", "absent.txt", *map(str, flags)]) == 2
    error = capsys.readouterr().err
    assert error.count("miniformer: warning: memory is deprecated and will be removed") == 1
    assert error.count("use warmup_ratio") == 1
    assert "absent.txt: No such file" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--memory", "4GB", "--memory_limit", "3GB"], "former name of memory_limit; leave memory"),
        (["--memory", "much"], "memory_limit must be a size"),
        (["--warmup_share", "x"], "warmup_share must be a number or null, not x"),
        (["--memry", "4GB"], "did you mean --memory_limit?"),
        (["--val_intervall", "4"], "did you mean --val_check_interval?"),
    ],
)
def test_command_line_names_current_flags_in_errors(flags, message, capsys):
    assert cli.main(["train", "--train_path", "absent.txt", *flags]) == 2
    assert message in capsys.readouterr().err


def test_help_lists_no_former_name(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert "--memory_limit" in out
    assert "--warm_start" not in out


@pytest.mark.catches("generation_options_have_no_former_names")
def test_generation_accepts_former_names_of_options():
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    pipeline = Pipeline(model, tokenizer, task=LanguageModeling(), generation=GenerationConfig())
    options = {"max_new_tokens": 4, "temperature": 0}
    expected = pipeline.generate("ab", stop_strings=["zz"], no_repeat_ngram_size=1, **options)
    with pytest.warns(RenamedWarning) as caught:
        assert pipeline.generate("ab", stop=["zz"], no_repeat_ngram=1, **options) == expected
    assert [str(item.message).partition(" ")[0] for item in caught] == ["stop", "no_repeat_ngram"]
    with pytest.raises(ConfigError, match="stop is the former name of stop_strings"):
        pipeline.generate("ab", stop=["zz"], stop_strings=["zz"], **options)
    with pytest.warns(RenamedWarning, match="use bad_words_ids"):
        model.generate([[1, 2]], 2, temperature=0, bad_ids=[[3]])
