"""Settings of the training data are stored with the model, and later files are read alike."""

import pytest

from miniformer.checkpoint.data_settings import StoredDataSettings, read_data_settings
from miniformer.config import ConfigError, UserError
from miniformer.evaluation.run_batches import BatchSettings
from miniformer.utils.atomic import write_json

MAPPING = {
    "input_field": "review",
    "label_field": "stars",
    "kinds": {"review": "text", "stars": "integer"},
}


def test_read_data_settings_are_those_written(tmp_path):
    settings = StoredDataSettings(seq_len=32, batch_size=8, batch_tokens=99, fields=MAPPING)
    write_json(tmp_path / "data.json", settings.to_dict())
    assert read_data_settings(tmp_path) == settings
    assert settings.batches() == BatchSettings(32, 8, 99)
    assert settings.mapping().input_field == "review"


def test_read_data_settings_of_an_earlier_version_are_defaults(tmp_path):
    assert read_data_settings(tmp_path) == StoredDataSettings()


@pytest.mark.parametrize("text", ["{", "[1]", '{"seq_len": 0}', '{"fields": {"inputs": "a"}}'])
def test_read_data_settings_name_the_file(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json"):
        read_data_settings(tmp_path)


@pytest.mark.catches("other_columns_lose_their_kind")
def test_override_keeps_the_kind_of_a_renamed_column():
    """A label that was an integer in training is one in a file with another header."""
    mapping = StoredDataSettings(fields=MAPPING).override(
        {"label_field": "rating", "columns": None}
    )
    assert (mapping.input_field, mapping.label_field) == ("review", "rating")
    assert mapping.kinds["rating"] == "integer"
    with pytest.raises(ConfigError, match="delimiter"):
        StoredDataSettings().override({"delimiter": "long"})


@pytest.mark.catches("header_is_replaced_by_columns_of_training")
def test_columns_of_training_are_not_those_of_a_file_with_a_header():
    """A model trained on a file without a header reads one that has other names."""
    stored = StoredDataSettings(fields={"columns": "source,target", "delimiter": "\\t"})
    assert stored.mapping().columns == "source,target"
    assert stored.override({"label_field": "source"}).columns == "source,target"
    mapping = stored.override({"input_field": "word", "label_field": ["ipa"]})
    assert mapping.columns is None
    assert (mapping.input_field, mapping.delimiter) == ("word", "\\t")
    assert stored.override({"columns": "word,ipa", "input_field": "word"}).columns == "word,ipa"
