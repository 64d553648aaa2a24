"""GGUF files, executed by a reference in numpy and read with the package gguf."""

import re

import gguf
import numpy as np
import pytest
import torch

from miniformer.config import UserError
from miniformer.interop.gguf.types import TYPES
from tests.reference import gguf_numpy
from tests.unit.interop.gguf import cases

IDS = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.catches(
    "rope_halves_stay_halves_in_gguf",
    "gemma_norms_go_out_without_one",
    "gguf_epsilon_is_the_default",
    "windows_of_gguf_are_global",
    "missing_biases_of_gguf_are_ones",
)
@pytest.mark.parametrize("name", cases.DECODERS)
def test_logits_of_a_file_are_those_of_the_model(name, tmp_path):
    model = cases.build(name)
    cases.write(model, tmp_path / "model.gguf", weights="f32")
    with torch.inference_mode():
        expected = model(torch.tensor([IDS]))[0].double().numpy()
    actual = gguf_numpy.logits(tmp_path / "model.gguf", IDS)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=1e-4)


def test_names_are_those_of_llama_cpp(tmp_path):
    for name in cases.ALL:
        path = tmp_path / f"{name}.gguf"
        written = cases.write(cases.build(name), path, weights="f32")
        file = gguf_numpy.File(path)
        number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == written.architecture)
        known = {
            gguf.TENSOR_NAMES[kind].format(bid=layer)
            for kind in gguf.MODEL_TENSORS[number]
            for layer in range(8)
        }
        unknown = {tensor.rpartition(".")[0] for tensor in file.tensors} - known
        assert not unknown, (name, unknown)
        assert file.key("vocab_size") == 96


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.catches("rounded_rows_of_gguf_share_a_scale")
def test_types_of_weights(weights, tmp_path):
    model = cases.build("llama")
    cases.write(model, tmp_path / "model.gguf", weights=weights)
    file = gguf_numpy.File(tmp_path / "model.gguf")
    assert file.types["output_norm.weight"] == "f32"
    assert file.types["token_embd.weight"] == weights
    weight = model.embedding.weight.detach().numpy()
    # Largest error of a block relative to its largest value.
    limit = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 220, "q5_0": 1 / 14,
             "q5_1": 1 / 28, "q4_0": 1 / 7, "q4_1": 1 / 14}[weights]  # fmt: skip
    error = np.abs(file.tensors["token_embd.weight"] - weight).reshape(-1, 32).max(1)
    assert (error <= 1.01 * limit * np.abs(weight).reshape(-1, 32).max(1)).all()
    assert (error.max() > 0) == (weights != "f32")


def test_rows_that_are_no_whole_blocks_become_f16(tmp_path):
    model = cases.build("llama", d_ff=80)
    cases.write(model, tmp_path / "model.gguf", weights="q4_0")
    types = gguf_numpy.File(tmp_path / "model.gguf").types
    assert types["blk.0.ffn_down.weight"] == "f16"
    assert types["blk.0.ffn_up.weight"] == "q4_0"


@pytest.mark.catches("context_of_gguf_is_the_width")
def test_keys_of_a_file(tmp_path):
    cases.write(cases.build("gemma3"), tmp_path / "model.gguf", weights="q8_0")
    file = gguf_numpy.File(tmp_path / "model.gguf")
    assert file.key("context_length") == 64
    assert file.key("attention.sliding_window_pattern") == [True] * 5 + [False, True]
    assert file.key("rope.freq_base_swa") == 10000.0
    assert file.keys["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert file.keys["tokenizer.ggml.model"] == "no_vocab"


@pytest.mark.catches("every_model_fits_llama_cpp")
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"position": "alibi", "rotary_base": 10000.0},
         r"nearest is llama \(LlamaForCausalLM\), which does not .*position='alibi'"),
        ("mistral", {"sliding_window": 16}, "sliding_window=16"),
        ("gemma2", {"attention_scale": 0.5}, "attention_scale=0.5"),
        ("llama", {"activation": "geglu"}, "activation='geglu'"),
        ("t5", {"relative_max_distance": 64}, "relative_max_distance=64"),
        ("llama", {"output_dim": 3}, "output_dim=3: GGUF files hold language models"),
        ("bert", {"pooling": "max"}, "pooling='max'"),
    ],
)  # fmt: skip
def test_models_that_llama_cpp_lacks_are_refused(name, changes, message, tmp_path):
    with pytest.raises(UserError) as error:
        cases.write(cases.build(name, **changes), tmp_path / "model.gguf")
    assert re.search(message, str(error.value))
    assert not list(tmp_path.iterdir())
