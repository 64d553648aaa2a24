"""The graph of a decoder in onnxruntime equals the model at batches, lengths, pasts and sides of
padding of all kinds, by itself and in `run.py`; it is written once for all tests. Other models are
in tests/slow/check_onnx_battery.py."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer, UserError
from miniformer.exporters.onnx import graphs
from miniformer.exporters.onnx.bundle import write_bundle
from miniformer.exporters.onnx.graphs import write_graphs
from miniformer.exporters.onnx.initializers import Initializers
from miniformer.exporters.onnx.runner import run
from miniformer.exporters.onnx.weights import BLOCK, round_blocks, round_graph
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import Source
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import ROOT, VERSE, run_python, tiny_model

# Runs a program in a process in which torch and this package cannot be imported.
WITHOUT = """
import runpy, sys
for name in ("torch", "miniformer", "transformers", "lightning"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Graphs:
    """Sessions of the graphs of a model, fed as a user feeds them."""

    def __init__(self, folder, task=None, tokenizer=None, **changes):
        self.model = tiny_model(**changes)
        source = Source(self.model, tokenizer, task, None, folder)
        self.files = write_graphs(make_programs(source), folder)
        write_bundle(source, folder, self.files, "float32")
        self.folder = folder
        self.sessions = {
            part: onnxruntime.InferenceSession(str(folder / name))
            for part, name in self.files.items()
        }

    def run(self, part, **arrays):
        names = [output.name for output in self.sessions[part].get_outputs()]
        feeds = {name.replace("__", "."): array for name, array in arrays.items()}
        return dict(zip(names, self.sessions[part].run(None, feeds), strict=True))

    def steps(self, ids, mask, sizes, infix="", **source):
        """Logits of several calls, the first with a past of one masked column."""
        inputs = self.sessions["decoder"].get_inputs()
        past = {
            x.name: np.zeros((len(ids), x.shape[1], 1, x.shape[3]), np.float32)
            for x in inputs
            if x.name.startswith("past") and ".encoder." not in x.name
        }
        parts, seen, start = [], np.zeros((len(ids), 1), np.int64), 0
        for size in sizes:
            seen = np.concatenate([seen, mask[:, start : start + size]], 1)
            outputs = self.run(
                "decoder",
                input_ids=ids[:, start : start + size],
                attention_mask=seen,
                logits_to_keep=np.arange(size),
                **past,
                **source,
            )
            parts.append(outputs.pop("logits"))
            past = {"past_key_values" + name[len("present") :]: x for name, x in outputs.items()}
            start += size
        return np.concatenate(parts, 1)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("bpe", [VERSE] * 3, 300)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, tokenizer):
    return Graphs(
        tmp_path_factory.mktemp("decoder"), LanguageModeling(), tokenizer, n_layers=1, d_model=32,
        n_kv_heads=2, sliding_window=5, norm="rmsnorm", vocab_size=tokenizer.vocab_size,
        max_seq_len=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def texts(decoder, tokenizer):
    """The pipeline of the decoder, and its folder in `run.py`."""
    pipeline = Pipeline(decoder.model, tokenizer, task=LanguageModeling())
    return pipeline, run.Model(decoder.folder, threads=1)


def ragged(rows, length, side):
    lengths = np.array([length, *([3, 1, length, 2] * 2)[: rows - 1]])[:, None].clip(1, length)
    columns = np.arange(length)
    mask = columns >= length - lengths if side == "left" else columns < lengths
    ids = np.random.default_rng(rows).integers(0, 31, (rows, length))
    return ids, mask.astype(np.int64)


def excerpts(count):
    """Texts of many lengths."""
    return [VERSE[start % 90 :][: 1 + start % 23] for start in range(count)]


def close(actual, expected, mask):
    real = mask.astype(bool)
    np.testing.assert_allclose(actual[real], expected.detach().numpy()[real], rtol=0, atol=1e-5)


@pytest.mark.catches(
    "graph_sees_padding", "graph_orders_its_past_wrongly", "graph_scores_have_no_scale"
)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_decoder_equals_the_model(decoder, rows, side):
    for past in (1, 7, 30):  # columns before the last step, up to the longest
        ids, mask = ragged(rows, past + 1, side)
        if side == "right":
            mask[:, -1] = 1  # a step after a padded prompt
        expected = decoder.model(torch.tensor(ids), torch.tensor(mask).bool())
        close(decoder.steps(ids, mask, [past, 1]), expected, mask)


def test_logits_are_those_of_the_columns_that_are_kept(decoder):
    ids, mask = ragged(2, 6, "left")
    expected = decoder.model(torch.tensor(ids), torch.tensor(mask).bool())
    past = {
        f"past_key_values.0.{part}": np.zeros((2, 2, 1, 8), np.float32) for part in ("key", "value")
    }
    mask = np.concatenate([np.zeros((2, 1), np.int64), mask], 1)
    feeds = {"input_ids": ids, "attention_mask": mask, **past, "logits_to_keep": np.array([5])}
    logits = decoder.run("decoder", **feeds)["logits"]
    np.testing.assert_allclose(logits, expected[:, 5:].detach(), atol=1e-5)


def test_names_are_those_of_optimum():
    decoder = make_programs(Source(tiny_model(n_layers=1), None, None, None, None))[0]
    assert decoder.inputs == [
        *("input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"),
        "logits_to_keep",
    ]
    assert decoder.outputs == ["logits", "present.0.key", "present.0.value"]
    model = tiny_model(model=Seq2SeqTransformer, causal=False, n_layers=1)
    encoder, decoder = make_programs(Source(model, None, None, None, None))
    assert encoder.outputs == ["present.0.encoder.key", "present.0.encoder.value"]
    assert decoder.outputs[1] == "present.0.decoder.key"
    assert decoder.inputs[-4:] == [
        *("past_key_values.0.encoder.key", "past_key_values.0.encoder.value"),
        *("encoder_attention_mask", "logits_to_keep"),
    ]
    model = tiny_model(causal=False, token_types=2, n_layers=1)
    (program,) = make_programs(Source(model, None, None, None, None))
    assert program.inputs == ["input_ids", "attention_mask", "token_type_ids"]


def test_features_of_words_are_refused():
    model = tiny_model(
        causal=False, output_dim=3, wide_head=[{"type": "words", "size": 8}], n_layers=1
    )
    with pytest.raises(UserError, match="train with wide_head='off' to export"):
        make_programs(Source(model, None, None, None, None))


def test_200_prompts_greedily_in_ragged_batches(texts):
    pipeline, runner = texts
    prompts, options = excerpts(200), {"temperature": 0.0, "max_new_tokens": 12}
    rows = [row.inputs for row in runner.encode(prompts)]
    for first in range(0, 200, 8):
        batch = slice(first, first + 8)
        outputs = runner.generate_tokens(rows[batch], **options)
        expected = pipeline.generate_outputs(prompts[batch], **options)
        assert [x.tokens for x in outputs] == [x.tokens for _, x in expected]
    assert runner.generate(prompts, **options) == pipeline.generate(prompts, **options)


def test_samples_and_stop_strings_in_onnxruntime(texts):
    pipeline, runner = texts
    options = {"temperature": 0.9, "seed": 5, "top_p": 0.9, "num_return_sequences": 2}
    expected = pipeline.generate(excerpts(9), max_new_tokens=9, stop_strings=["e"], **options)
    results = runner.generate(excerpts(9), max_new_tokens=9, stop_strings=["e"], **options)
    assert results == [text for copies in expected for text in copies]


@pytest.mark.catches("runner_lacks_a_file")
def test_the_runner_needs_neither_torch_nor_this_package(decoder, texts):
    folder, pipeline = decoder.folder, texts[0]
    arguments = ["generate", "The cat", "a", "--temperature", "0", "--max_new_tokens", "9"]
    done = run_python("-c", WITHOUT, folder / "run.py", *arguments, cwd=folder.parent)
    expected = pipeline.generate(["The cat", "a"], temperature=0.0, max_new_tokens=9)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"The cat{expected[0]}\na{expected[1]}\n"
    blocked = run_python("-c", WITHOUT, ROOT / "src/miniformer/cli.py")
    assert "import of miniformer halted" in blocked.stderr


@pytest.mark.catches("graph_has_a_tied_head_twice")
def test_a_copy_of_the_embedding_becomes_its_transpose():
    """`torch.onnx` transposes a small weight before it writes it."""
    table = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["vectors"]),
        helper.make_node("MatMul", ["vectors", "head"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(table.T, "head")]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 7])
    graph = helper.make_graph(nodes, "tied", [ids], [logits], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    graphs.share_tied_head(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["table"]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (outputs,) = session.run(None, {"ids": np.array([2, 5])})
    np.testing.assert_allclose(outputs, table[[2, 5]] @ table.T, atol=1e-6)


def test_a_tied_head_is_written_once(decoder):
    tensors = onnx.load(decoder.folder / "decoder.onnx").graph.initializer
    assert [sorted(x.dims) for x in tensors].count([32, decoder.model.config.vocab_size]) == 1
    assert decoder.model.head.weight is None


@pytest.mark.catches("halves_of_bytes_are_swapped")
@pytest.mark.parametrize(("bits", "most"), [(8, 0.05), (4, 0.5)])
def test_rounded_graphs_compute_what_their_blocks_say(decoder, tmp_path, bits, most):
    """onnxruntime's result is that of the float graph with the same rounded matrices."""
    path, exact = tmp_path / "decoder.onnx", tmp_path / "exact.onnx"
    model = onnx.load(decoder.folder / "decoder.onnx")
    onnx.save(model, path)
    round_graph(path, f"int{bits}")
    assert path.stat().st_size < (decoder.folder / "decoder.onnx").stat().st_size
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("MatMulNBits") == 7  # four of attention, two of the feed-forward, the head
    assert kinds.count("GatherBlockQuantized") == 1
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.dtype == np.float32 and min(array.shape) > 1:
            is_table = "embedding" in tensor.name
            rounded = restored(array if is_table else array.T, 8 if is_table else bits)
            array = rounded if is_table else rounded.T
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    onnx.save(model, exact)
    ids, mask = ragged(2, 6, "left")
    results = []
    for file in (path, exact):
        decoder.sessions["decoder"], session = (
            onnxruntime.InferenceSession(str(file)), decoder.sessions["decoder"],
        )  # fmt: skip
        results.append(decoder.steps(ids, mask, [6])[mask.astype(bool)])
        decoder.sessions["decoder"] = session
    float_logits = decoder.steps(ids, mask, [6])[mask.astype(bool)]
    scale = np.abs(float_logits).max()
    assert np.abs(results[0] - results[1]).max() < 0.03 * scale  # of int8 products
    assert 0 < np.abs(results[1] - float_logits).max() < most * scale


def test_dynamic_rounding_changes_products_a_little(decoder, tmp_path):
    path, ids = tmp_path / "decoder.onnx", ragged(2, 6, "left")[0]
    shutil.copyfile(decoder.folder / "decoder.onnx", path)
    round_graph(path, "int8_dynamic")
    assert [item.name for item in tmp_path.iterdir()] == ["decoder.onnx"]
    expected = decoder.steps(ids, np.ones_like(ids), [6])
    session = decoder.sessions["decoder"]
    decoder.sessions["decoder"] = onnxruntime.InferenceSession(str(path))
    actual = decoder.steps(ids, np.ones_like(ids), [6])
    decoder.sessions["decoder"] = session
    assert 0 < (actual - expected).std() < 0.2 * expected.std()


def restored(matrix, bits):
    """Values of a matrix after rounding, by the definition of MatMulNBits."""
    blocks = round_blocks(matrix, bits)
    codes = blocks.values.astype(np.int64)
    if bits == 4:
        codes = np.stack([codes % 16, codes // 16], -1).reshape(*codes.shape[:2], BLOCK)
    values = (codes - 2 ** (bits - 1)) * blocks.scales[..., None]
    return values.reshape(matrix.shape).astype(np.float32)


def test_blocks_have_small_errors():
    matrix = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    matrix[0, :32] = 0
    for bits, most in ((8, 0.007), (4, 0.12)):
        error = restored(matrix, bits) - matrix
        assert np.sqrt(np.square(error).mean()) < most
        assert not error[0, :32].any()


@pytest.mark.catches("unused_tensors_stay_in_the_graph")
def test_unused_tensors_are_removed(decoder):
    model = onnx.load(decoder.folder / "decoder.onnx")
    tensors = Initializers(model)
    tensors.add("unused", np.zeros(3))
    tensors.remove_unused()
    assert "unused" not in {tensor.name for tensor in model.graph.initializer}
