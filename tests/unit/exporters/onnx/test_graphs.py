"""Graphs in onnxruntime equal the model at batches, lengths, pasts and sides of padding of all
kinds; each graph is written once for all tests."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from miniformer import Seq2SeqTransformer, UserError
from miniformer.exporters.onnx.graphs import write_graphs
from miniformer.exporters.onnx.initializers import Initializers
from miniformer.exporters.onnx.weights import BLOCK, round_blocks, round_graph
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import Source
from tests.kit import tiny_model


class Graphs:
    """Sessions of the graphs of a model, fed as a user feeds them."""

    def __init__(self, folder, task=None, **changes):
        self.model = tiny_model(**changes)
        source = Source(self.model, None, task, None, folder)
        self.files = write_graphs(source, folder)
        self.folder, self.task = folder, task
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
def decoder(tmp_path_factory):
    return Graphs(
        tmp_path_factory.mktemp("decoder"), n_layers=1, d_model=32, n_kv_heads=2, qk_norm="head",
        sliding_window=5, norm="rmsnorm", logit_softcap=4.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator")
    return Graphs(folder, model=Seq2SeqTransformer, causal=False, n_layers=1, position="learned")


def ragged(rows, length, side):
    lengths = np.array([length, *([3, 1, length, 2] * 2)[: rows - 1]])[:, None].clip(1, length)
    columns = np.arange(length)
    mask = columns >= length - lengths if side == "left" else columns < lengths
    ids = np.random.default_rng(rows).integers(0, 31, (rows, length))
    return ids, mask.astype(np.int64)


def close(actual, expected, mask):
    real = mask.astype(bool)
    np.testing.assert_allclose(actual[real], expected.detach().numpy()[real], rtol=0, atol=1e-5)


@pytest.mark.catches("graph_sees_padding", "graph_orders_its_past_wrongly")
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


@pytest.mark.catches("graph_swaps_keys_and_values_of_the_source")
@pytest.mark.parametrize("side", ["left", "right"])
def test_translator_equals_the_model(translator, side):
    for rows in (1, 3):
        source, source_mask = ragged(rows, 7, side)
        ids, mask = ragged(rows, 6, "right")
        mask[:, -1] = 1
        cross = translator.run("encoder", input_ids=source, attention_mask=source_mask)
        cross = {"past_key_values" + name[len("present") :]: x for name, x in cross.items()}
        expected = translator.model(
            torch.tensor(source), torch.tensor(ids), torch.tensor(source_mask).bool(),
            torch.tensor(mask).bool(),
        )  # fmt: skip
        cross["encoder_attention_mask"] = source_mask
        close(translator.steps(ids, mask, [4, 1, 1], **cross), expected, mask)


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
    with pytest.raises(UserError, match="train with --wide_head off to export"):
        make_programs(Source(model, None, None, None, None))


@pytest.mark.catches("graph_has_a_tied_head_twice")
def test_a_tied_head_is_written_once(decoder):
    tensors = onnx.load(decoder.folder / "decoder.onnx").graph.initializer
    assert [sorted(x.dims) for x in tensors].count([31, 32]) == 1
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
