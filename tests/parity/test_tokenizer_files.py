"""Tokenizer files of transformers through import, save, training and export."""

import json
from pathlib import Path

import pytest

import miniformer
from miniformer.checkpoint.directory import TOKENIZER_FILES
from miniformer.interop.hf.families import ALL_FAMILIES
from miniformer.model import hub
from tests.parity.test_hugging_face_texts import random_model, tokenizer_like

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")
OTHERS = {"tool": "{% for m in messages %}[{{ m.content }}]{% endfor %}"}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
MESSAGES = [{"role": "user", "content": "a fine film"}]


def tokenizer_names():
    """File names in the tokenizer classes of all families."""
    names = transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES
    for family in ALL_FAMILIES:
        kind = getattr(transformers, names.get(family.model_type) or "LlamaTokenizer")
        for name in kind.vocab_files_names.values():
            yield family.model_type, name


def test_tokenizer_files_include_every_name_that_a_family_reads():
    known = dict(tokenizer_names())
    assert len(known) == len({family.model_type for family in ALL_FAMILIES})
    assert {name for _, name in tokenizer_names()} <= {*TOKENIZER_FILES}
    saved = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    assert saved | {"chat_template.jinja"} <= {*TOKENIZER_FILES}


@pytest.fixture
def theirs(tmp_path):
    """A chat model with several tokenizer files, and their content."""
    folder = tmp_path / "theirs"
    fast = tokenizer_like("llama", folder)
    fast.chat_template = {"default": CHAT, **OTHERS}
    fast.add_tokens(["<film>"])
    fast.save_pretrained(folder)
    random_model("LlamaForCausalLM", "llama").save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"\x00\xff\r\n not text")
    (folder / "added_tokens.json").write_text(json.dumps({"<film>": 290}))
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    assert (folder / "additional_chat_templates" / "tool.jinja").exists()
    return folder


def companions(folder):
    """Content of all files but those of the model itself."""
    own = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    own |= {"task.json", "data.json", "huggingface.json", "format_version"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and str(path.relative_to(folder)) not in own
    }


def imported(theirs, out):
    miniformer.import_hf(theirs, out)


def saved_again(theirs, out):
    miniformer.import_hf(theirs, out.with_name("first"))
    miniformer.load(out.with_name("first")).save(out)


def saved_from_memory(theirs, out):
    miniformer.from_hf(theirs).save(out)


def exported(theirs, out):
    miniformer.import_hf(theirs, out.with_name("first"))
    miniformer.to_hf(out.with_name("first"), out)


def exported_from_memory(theirs, out):
    miniformer.to_hf(miniformer.from_hf(theirs), out)


def trained_and_exported(theirs, out):
    miniformer.import_hf(theirs, out.with_name("first"))
    train = out.with_name("train.jsonl")
    train.write_text('{"text": "a fine film"}\n' * 8)
    run = miniformer.train(
        miniformer.TrainConfig(
            train_path=str(train), task="language_modeling", max_steps=1, logger="none", lr=1e-4,
            init_from=str(out.with_name("first")), work_dir=str(out.with_name("runs")),
        )
    )  # fmt: skip
    miniformer.to_hf(run.model, out)


@pytest.mark.parametrize(
    "way",
    [
        imported, saved_again, saved_from_memory, exported, exported_from_memory,
        trained_and_exported,
    ],
)  # fmt: skip
@pytest.mark.catches("chat_templates_dropped")
@pytest.mark.catches("tokenizer_files_dropped")
def test_tokenizer_files_stay_as_they_are(way, theirs, tmp_path):
    out = tmp_path / "out"
    way(theirs, out)
    expected = companions(theirs)
    assert {"chat_template.jinja", "additional_chat_templates/tool.jinja"} < expected.keys()
    assert companions(out) == expected
    if "exported" in way.__name__:
        reloaded = transformers.AutoTokenizer.from_pretrained(out)
        assert reloaded.apply_chat_template(MESSAGES, tokenize=False) == "<user>a fine film"
        tool = reloaded.apply_chat_template(MESSAGES, tokenize=False, chat_template="tool")
        assert tool == "[a fine film]"


def test_tokenizer_files_are_retained_without_a_tokenizer_json(theirs, tmp_path):
    (theirs / "tokenizer.json").unlink()
    (theirs / "tokenizer.model").unlink()
    miniformer.import_hf(theirs, tmp_path / "ours")
    assert companions(tmp_path / "ours") == companions(theirs)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool.jinja"])
def test_tokenizer_files_must_not_lead_out(name, theirs, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (theirs / name).unlink()
    (theirs / name).symlink_to(tmp_path / "secret")
    with pytest.raises(miniformer.UserError, match="links out of the directory"):
        miniformer.import_hf(theirs, tmp_path / "ours")


def test_tokenizer_files_come_from_the_hub(theirs, tmp_path, monkeypatch):
    """The patterns of a download match all tokenizer files."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    def download(source, *, revision, allow_patterns):
        expected = filter_repo_objects(map(str, companions(theirs)), allow_patterns=allow_patterns)
        assert set(expected) == companions(theirs).keys()
        return theirs

    (theirs / "source.spm").write_bytes(b"\x01")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.resolve_directory("user/name") == Path(theirs)
