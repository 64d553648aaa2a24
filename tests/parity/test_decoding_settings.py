"""`generation_config.json` of imported models: each setting is applied, or a warning names it."""

import json
import warnings

import pytest
import torch

import miniformer
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import NoEffectWarning, UserError
from miniformer.config.architectures import architecture_config
from miniformer.tasks.language_modeling import LanguageModeling
from tests.parity.test_hugging_face_texts import random_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")
SAMPLING, SEARCH = {"do_sample": True}, {"num_beams": 2, "early_stopping": "never"}
# option -> a value with effect, other options of the file, and the result: fields of
# `GenerationConfig`, or "reported"
SETTINGS = {
    "max_new_tokens": (7, {}, {"max_new_tokens": 7}),
    "min_new_tokens": (2, {}, {"min_new_tokens": 2}),
    "do_sample": (True, {"top_k": 0}, {"temperature": 1.0}),
    "num_beams": (2, {"early_stopping": "never"}, {"num_beams": 2}),
    "temperature": (0.5, SAMPLING, {"temperature": 0.5}),
    "top_k": (9, SAMPLING, {"top_k": 9}),
    "top_p": (0.8, SAMPLING, {"top_p": 0.8}),
    "min_p": (0.1, SAMPLING, {"min_p": 0.1}),
    "repetition_penalty": (1.3, {}, {"repetition_penalty": 1.3}),
    "length_penalty": (0.5, SEARCH, {"length_penalty": 0.5}),
    "no_repeat_ngram_size": (2, {}, {"no_repeat_ngram_size": 2}),
    "bad_words_ids": ([[7], [8, 9]], {}, {"bad_words_ids": [[7], [8, 9]]}),
    "suppress_tokens": ([7, 9], {"bad_words_ids": [[8]]}, {"bad_words_ids": [[8], [7], [9]]}),
    "num_return_sequences": (2, SAMPLING, {"num_return_sequences": 2}),
    "stop_strings": (["."], {}, {"stop_strings": ["."]}),
    "eos_token_id": ([7, 8], {}, {"eos_id": 7, "stop_token_ids": [8]}),
    **{
        name: (value, {}, "reported")
        for name, value in {
            "max_length": 9, "min_length": 9, "max_time": 2.0, "begin_suppress_tokens": [7],
            "forced_bos_token_id": 7, "encoder_repetition_penalty": 1.2, "penalty_alpha": 0.5,
            "encoder_no_repeat_ngram_size": 2, "dola_layers": "low", "guidance_scale": 1.5,
            "exponential_decay_length_penalty": [2, 1.1], "sequence_bias": [[[7], -2.0]],
            "token_healing": True, "watermarking_config": {"bias": 2.0}, "constraints": [1],
            "force_words_ids": [[7]], "num_beam_groups": 2, "diversity_penalty": 0.5,
            "remove_invalid_values": True, "made_up": 3,
        }.items()
    },
    **{
        name: (value, SAMPLING, "reported")
        for name, value in {
            "typical_p": 0.9, "top_h": 0.3, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01,
        }.items()
    },
    "early_stopping": (True, {"num_beams": 2}, "reported"),
    "renormalize_logits": (True, SEARCH, "reported"),
    "forced_eos_token_id": (3, {**SEARCH, "max_new_tokens": 7}, "reported"),
}  # fmt: skip
# option -> reason why it does not change generated text
SAME_TEXT = {
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_scores", "output_logits",
         "return_dict_in_generate"), "outputs beside the text"),
    **dict.fromkeys(
        ("use_cache", "cache_implementation", "cache_config", "max_cache_len", "compile_config",
         "disable_compile", "continuous_batching_config", "low_memory", "prefill_chunk_size"),
        "speed"),
    **dict.fromkeys(
        ("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
         "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind",
         "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
         "prompt_lookup_num_tokens", "max_matching_ngram_size"), "speculative decoding"),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), "of inputs"),
    "decoder_start_token_id": "of a decoder with an encoder; see below",
    **dict.fromkeys(("transformers_version", "_from_model_config"), "of the file"),
}  # fmt: skip


def test_hugging_face_settings_are_all_known():
    known = transformers.GenerationConfig().to_dict().keys()
    assert SETTINGS.keys() | SAME_TEXT.keys() == known | {"made_up"}
    assert not SETTINGS.keys() & SAME_TEXT.keys()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    random_model("LlamaForCausalLM", "llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_stacks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stacks")
    random_model("BartForConditionalGeneration", "bart").save_pretrained(folder)
    return folder


def read(folder, **settings):
    """The pipeline of a directory with these options, and the reported options."""
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline = miniformer.from_hf(folder)
    messages = [str(item.message) for item in caught if item.category is NoEffectWarning]
    assert len(messages) <= 1
    return pipeline, messages[0].split("generation_config.json: ")[1] if messages else ""


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.catches("decoding_settings_unreported")
def test_hugging_face_setting_is_applied_or_reported(name, decoder):
    value, more, becomes = SETTINGS[name]
    plain, nothing = read(decoder, **more)
    actual, reported = read(decoder, **more, **{name: value})
    given, required = actual.generation.to_dict(), plain.generation.to_dict()
    if name == "early_stopping":
        assert nothing.startswith("early_stopping=False: not applied")
    else:
        assert nothing == ""
    if becomes == "reported":
        assert reported.startswith(f"{name}={value!r}: not applied")
        assert given == required
    else:
        assert reported == ""
        assert given == required | becomes != required


@pytest.mark.parametrize("name", SAME_TEXT)
def test_hugging_face_setting_without_effect_is_not_reported(name, decoder):
    plain, _ = read(decoder)
    actual, reported = read(decoder, **{name: 1})
    assert (actual.generation, reported) == (plain.generation, "")


@pytest.mark.catches("sampling_among_all_tokens")
def test_sampling_candidates_match_hugging_face(decoder):
    assert read(decoder, do_sample=True)[0].generation.top_k == 50
    assert read(decoder, do_sample=True, top_k=0)[0].generation.top_k is None
    assert read(decoder)[0].generation.top_k is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"suppress_tokens": [251, 59, 149]},
        {"suppress_tokens": [3]},
        {"min_length": 8},
        {"min_length": 8, "min_new_tokens": 3},
        {"max_length": 5},
        {"max_length": 5, "max_new_tokens": 9},
        {"max_length": 9, "forced_eos_token_id": 3},
        {"num_beams": 3, "early_stopping": "never", "min_length": 6, "suppress_tokens": [7, 9]},
    ],
    ids=str,
)
@pytest.mark.catches("suppressed_tokens_written", "min_length_ignored")
def test_seq2seq_settings_give_the_text_of_hugging_face(settings, two_stacks):
    """Lengths count the token that a decoder begins with."""
    hf_model = transformers.BartForConditionalGeneration.from_pretrained(
        two_stacks, attn_implementation="eager"
    )
    start = hf_model.config.decoder_start_token_id
    with torch.no_grad():  # texts end after a few tokens, so that limits of length matter
        hf_model.final_logits_bias[0, 3] = 1.4
    hf_model.save_pretrained(two_stacks)
    settings = {
        "max_length": 14,
        "repetition_penalty": 1.5,
        "eos_token_id": 3,
        "decoder_start_token_id": start,
        **settings,
    }
    imported, reported = read(two_stacks, **settings)
    assert reported == ""
    assert imported.task.start_id == start
    hf_model.generation_config = transformers.GenerationConfig(**settings, pad_token_id=0)
    lengths = set()
    for seed in range(8):
        torch.manual_seed(seed)
        source = torch.randint(4, 300, (1, 6))
        required = hf_model.generate(source)[0, 1:].tolist()
        required = required[: required.index(3)] if 3 in required else required
        options = {**imported.generation.to_dict(), "start_id": start}
        assert imported.model.generate(source.tolist(), **options) == [required]
        lengths.add(len(required))
    assert lengths != {0}


def test_import_reads_settings_of_older_configs(two_stacks):
    """Without a file for decoding, transformers reads `config.json` and the class's defaults."""
    (two_stacks / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((two_stacks / "config.json").read_text())
    config |= {"no_repeat_ngram_size": 3, "num_beams": 2, "early_stopping": True, "max_length": 20}
    config |= {"forced_bos_token_id": 4}
    for name in ("decoder_start_token_id", "eos_token_id", "forced_eos_token_id"):
        config.pop(name)
    (two_stacks / "config.json").write_text(json.dumps(config))
    with pytest.warns(NoEffectWarning) as caught:
        imported = miniformer.from_hf(two_stacks)
    text = str(caught[0].message).split("generation_config.json: ")[1]
    assert text.startswith(
        "early_stopping=True, forced_bos_token_id=4, forced_eos_token_id=2: not applied"
    )
    assert (imported.generation.no_repeat_ngram_size, imported.generation.num_beams) == (3, 2)
    assert (imported.generation.max_new_tokens, imported.generation.eos_id) == (19, 2)
    assert imported.task.start_id == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suppress_tokens": 7}, "suppress_tokens must be a list, not 7"),
        ({"suppress_tokens": ["a"]}, "a token id must be a non-negative integer, not 'a'"),
        ({"bad_words_ids": "a"}, "bad_words_ids must be a list, not 'a'"),
        ({"min_length": "a"}, "min_length must be an integer, not 'a'"),
        ({"max_length": True}, "max_length must be an integer, not True"),
    ],
)
def test_import_rejects_invalid_settings(settings, message, decoder):
    with pytest.raises(UserError) as caught:
        read(decoder, **settings)
    assert str(caught.value) == f"{decoder / 'generation_config.json'}: {message}"


def test_import_command_reports_settings_that_are_not_applied(decoder, tmp_path, capsys):
    from miniformer.cli import main

    (decoder / "generation_config.json").write_text('{"typical_p": 0.9, "do_sample": true}')
    assert main(["import", str(decoder), str(tmp_path / "ours")]) == 0
    text = capsys.readouterr().err
    assert "miniformer: warning: " in text
    assert "generation_config.json: typical_p=0.9: not applied by generation" in text


def test_export_reports_settings_that_hugging_face_lacks(decoder, tmp_path):
    (decoder / "generation_config.json").unlink(missing_ok=True)
    imported = miniformer.from_hf(decoder)
    imported.hf_metadata = {}
    settings = {
        "frequency_penalty": 0.5,
        "stop_strings": ["."],
        "num_beams": 2,
        "length_normalization": "gnmt",
    }
    imported.generation = miniformer.GenerationConfig(temperature=0.0, **settings)
    with pytest.warns(
        NoEffectWarning, match=r"frequency_penalty=0.5, length_normalization='gnmt': trans"
    ):
        miniformer.to_hf(imported, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["stop_strings"], written["num_beams"]) == (["."], 2)
    assert written["early_stopping"] == "never"


@pytest.mark.catches("exports_lose_the_first_end")
@pytest.mark.parametrize(
    ("stop_token_ids", "expected"), [(None, 0), ([12], [0, 12]), ([12, 9], [0, 12, 9])]
)
def test_export_has_every_eos_id(tmp_path, stop_token_ids, expected):
    """The export of a model without metadata has all EOS ids."""
    sizes = {"vocab_size": 300, "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 24}
    values = architecture_config("llama", **sizes, max_seq_len=32)
    model = miniformer.Transformer(miniformer.TransformerConfig(**values))
    options = miniformer.GenerationConfig(eos_id=0, stop_token_ids=stop_token_ids, max_new_tokens=5)
    pipeline = Pipeline(
        model, miniformer.Tokenizer.train("byte", []), task=LanguageModeling(), generation=options
    )
    miniformer.to_hf(pipeline, tmp_path / "theirs")
    hf_model = transformers.GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert hf_model.eos_token_id == expected
    assert miniformer.from_hf(tmp_path / "theirs").generation.eos_token_ids == [
        0, *(stop_token_ids or [])
    ]  # fmt: skip
