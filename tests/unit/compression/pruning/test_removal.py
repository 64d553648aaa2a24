"""Models without some of their parts, against the whole model with these parts at zero."""

import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer, Transformer, UserError, cli
from miniformer.compression.pruning.importance import (
    layer_scores,
    record_batches,
    taylor_scores,
    weight_scores,
)
from miniformer.compression.pruning.removal import remove_parts
from miniformer.compression.pruning.structure import keep_layers, keep_units
from miniformer.model.transforms import apply_transforms
from miniformer.tasks.classification import Classification
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE, tiny_model
from tests.kit.plugins import registered

IDS = torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(4))
MASK = torch.arange(9) < torch.tensor([[9], [6], [7]])
SEQ2SEQ = {"model": Seq2SeqTransformer, "causal": False}
MODELS = {
    "decoder": {},
    "encoder": {"causal": False, "norm_placement": "post", "position": "learned"},
    "gated": {"activation": "swiglu", "bias": False, "norm": "rmsnorm", "tie_embeddings": False},
    "grouped": {"n_kv_heads": 2, "qkv_bias": True, "bias": False, "qk_norm": "head"},
    "one_kv_head": {"n_kv_heads": 1},
    "sinks": {"attention_sinks": True, "head_dim": 8, "parallel_residual": True},
    "t5": {**SEQ2SEQ, "position": "t5_relative", "relative_buckets": 8, "attention_scale": 1.0},
    "translator": {**SEQ2SEQ, "n_decoder_layers": 3, "activation": "geglu", "n_kv_heads": 2},
}  # fmt: skip
TEXTS = [VERSE[n : n + 3 + n % 7] for n in range(12)]


def outputs(model):
    with torch.inference_mode():
        if isinstance(model, Seq2SeqTransformer):
            return model(IDS, IDS[:, :5], source_mask=MASK)
        return model(IDS, MASK)


def parts_of(model, name):
    return {
        path: part for path, part in model.named_modules()
        if path.rpartition(".")[2] in (name, f"cross_{name}")
    }  # fmt: skip


def zeroed(model, removed):
    """Outputs with elements of the inputs of linear layers at zero, by name of the layer."""
    handles = []
    for name, elements in removed.items():

        def hook(_, arguments, elements=elements):
            x = arguments[0].clone()
            x[..., elements] = 0
            return (x,)

        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
    result = outputs(model)
    for handle in handles:
        handle.remove()
    return result


def others(retained, total):
    return [index for index in range(total) if index not in retained]


@pytest.mark.catches("biases_are_of_the_first_columns",
                     "key_heads_are_of_the_first_groups")  # fmt: skip
@pytest.mark.parametrize("name", MODELS)
def test_units_are_those_of_the_model_with_zeros(name):
    model = tiny_model(**MODELS[name]).double()
    config = model.config
    width, total = config.head_width, config.n_heads
    groups = total if config.kv_heads == 1 else config.kv_heads
    generator = torch.Generator().manual_seed(1)
    shared = [1, 3] if groups == 4 else [1]
    heads, columns, removed = {}, {}, {}
    for path, part in parts_of(model, "attention").items():
        heads[path] = shared
        if config.position != "t5_relative" or part.cross:
            order = torch.randperm(groups, generator=generator)[: len(shared)]
            heads[path] = sorted(order.tolist())
        size = total // groups
        query_heads = [u * size + i for u in others(heads[path], groups) for i in range(size)]
        removed[f"{path}.o_proj"] = [h * width + e for h in query_heads for e in range(width)]
    for path in parts_of(model, "feed_forward"):
        order = torch.randperm(config.ff_width, generator=generator)[:20]
        columns[path] = sorted(order.tolist())
        removed[f"{path}.down_proj"] = others(columns[path], config.ff_width)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = keep_units(model, heads, columns)
    torch.testing.assert_close(outputs(small), zeroed(model, removed), rtol=0, atol=1e-6)
    assert (small.config.n_heads, small.config.d_ff) == (total // 2, 20)
    assert small.config.head_width == width
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    parameters = sum(x.numel() for x in small.parameters())
    assert parameters == small.config.num_params(seq2seq=hasattr(model, "decoder"))


@pytest.mark.catches("layers_keep_their_windows_by_number")
@pytest.mark.parametrize("pattern", [None, "LG", "LLG"])
def test_layers_are_left_out(pattern):
    window = {} if pattern is None else {"sliding_window": 3, "window_pattern": pattern}
    model = tiny_model(n_layers=5, **window)
    small = keep_layers(model, {"": [0, 2, 3]})
    layers = model.layers
    model.layers = torch.nn.ModuleList([layers[0], layers[2], layers[3]])
    assert torch.equal(outputs(small), outputs(model))
    assert small.config.n_layers == 3


def test_layers_of_both_stacks():
    model = tiny_model(**{**MODELS["translator"], "n_layers": 4})
    small = keep_layers(model, {"encoder": [1, 3], "decoder": [2]})
    assert (small.config.n_layers, small.config.n_decoder_layers) == (2, 1)
    encoder, decoder = model.encoder.layers, model.decoder.layers
    model.encoder.layers = torch.nn.ModuleList([encoder[1], encoder[3]])
    model.decoder.layers = torch.nn.ModuleList([decoder[2]])
    assert torch.equal(outputs(small), outputs(model))
    one = keep_layers(tiny_model(**MODELS["translator"]), {"encoder": [0]})
    assert (one.config.n_layers, one.config.n_decoder_layers) == (1, 3)
    windows = {"sliding_window": 3, "window_pattern": "LG"}
    with pytest.raises(UserError, match=r"no pattern fits the layers that stay \(G, LG\)"):
        keep_layers(tiny_model(**SEQ2SEQ, **windows), {"encoder": [1]})


@pytest.fixture(scope="module")
def pipelines():
    """A pipeline of each kind of model, and labeled records."""
    tokenizer = Tokenizer.train("byte", [])
    sizes = {"vocab_size": tokenizer.vocab_size}
    classes = Classification(classes=["a", "b"], input_kind="text")
    encoder = tiny_model(causal=False, output_dim=2, n_layers=3, **sizes)
    translator = tiny_model(**MODELS["translator"], **sizes)
    return {
        "classifier": (
            Pipeline(encoder, tokenizer, classes),
            [{"input": text, "label": "ab"[n % 2]} for n, text in enumerate(TEXTS)],
        ),
        "translator": (
            Pipeline(translator, tokenizer, Seq2Seq()),
            [{"source": text, "target": text[::-1]} for text in TEXTS],
        ),
        "decoder": (
            Pipeline(tiny_model(n_layers=3, **sizes), tokenizer, LanguageModeling()),
            [{"text": text} for text in TEXTS],
        ),
    }


def test_importance_is_the_change_of_the_loss(pipelines):
    """The score of a part is |d loss / d factor of its output|, record by record."""
    pipeline, records = pipelines["classifier"]
    heads, columns = taylor_scores(pipeline, records)
    model, step = pipeline.model.double(), 1e-3
    expected = {"head": 0.0, "column": 0.0}
    where = {
        "head": ("layers.1.attention.o_proj", range(4, 8)),
        "column": ("layers.2.feed_forward.down_proj", range(5, 6)),
    }
    for kind, (name, elements) in where.items():
        column = model.get_submodule(name).weight.data[:, list(elements)].clone()
        for record in records:
            losses = []
            for factor in (1 + step, 1 - step):
                model.get_submodule(name).weight.data[:, list(elements)] = column * factor
                evaluation = pipeline.evaluate([record], num_resamples=0)
                losses.append(evaluation.metrics["loss"])
            expected[kind] += abs(losses[0] - losses[1]) / (2 * step)
        model.get_submodule(name).weight.data[:, list(elements)] = column
    model.float()
    assert float(heads["layers.1.attention"][1]) == pytest.approx(expected["head"], rel=1e-2)
    assert float(columns["layers.2.feed_forward"][5]) == pytest.approx(expected["column"], rel=1e-2)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.catches("padding_has_an_influence")
@pytest.mark.parametrize("name", ["classifier", "translator"])
def test_influence_of_layers_is_that_of_single_records(name, pipelines):
    pipeline, records = pipelines[name]
    scores = layer_scores(pipeline, records)
    stack = pipeline.model if name == "classifier" else pipeline.model.decoder
    pairs = []
    handle = stack.layers[1].register_forward_hook(lambda _, x, y: pairs.append((x[0], y)))
    with torch.inference_mode():
        for record in records:
            for batch in record_batches(pipeline, [record]):
                pipeline.task.loss(pipeline.model, batch)
    handle.remove()
    x, y = (torch.cat([pair[i].flatten(0, 1) for pair in pairs]).double() for i in (0, 1))
    cosines = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    score = scores["" if name == "classifier" else "decoder"][1]
    assert float(score) == pytest.approx(1 - float(cosines.mean()), rel=1e-4)


@pytest.mark.catches("importance_is_without_gradients", "removed_heads_are_the_important_ones")
def test_the_least_important_parts_are_removed(pipelines):
    pipeline, records = pipelines["decoder"]
    heads, columns = taylor_scores(pipeline, records)
    small, lines = remove_parts(pipeline.model, pipeline, {"heads": 0.25, "ffn": 0.5}, records)
    assert lines == [
        "heads: 1 of 4 of each attention", "feed-forward: 32 of 64 columns of each"
    ]  # fmt: skip
    kept_heads, kept_columns = {}, {}
    for path, score in heads.items():
        kept_heads[path] = others([int(score.argmin())], 4)
    for path, score in columns.items():
        kept_columns[path] = sorted(sorted(range(64), key=lambda i: -score[i])[:32])
    expected = keep_units(pipeline.model, kept_heads, kept_columns)
    assert torch.equal(outputs(small), outputs(expected))
    influence = layer_scores(pipeline, records)[""]
    shallow, lines = remove_parts(pipeline.model, pipeline, {"layers": 1}, records)
    least = int(influence.argmin())
    assert lines == [f"layers: {least} of 0 to 2"]
    expected = keep_layers(pipeline.model, {"": others([least], 3)})
    assert torch.equal(outputs(shallow), outputs(expected))


def test_weights_decide_without_records():
    model = tiny_model(**MODELS["grouped"])
    heads, columns = weight_scores(model)
    with torch.no_grad():
        layer = model.layers[0]
        value = layer.attention.v_proj.weight[:4].norm()
        assert heads["layers.0.attention"][1] == pytest.approx(
            float(value * layer.attention.o_proj.weight[:, 4:8].norm()), rel=1e-5
        )
        column = layer.feed_forward.down_proj.weight[:, 7].norm()
        assert columns["layers.0.feed_forward"][7] == pytest.approx(
            float(column * layer.feed_forward.up_proj.weight[7].norm()), rel=1e-5
        )
    small, _ = remove_parts(model, None, {"heads": 0.5})
    assert (small.config.n_heads, small.config.n_kv_heads) == (2, 1)


def test_the_first_layer_stays_if_it_has_no_norm(pipelines):
    tokenizer = pipelines["decoder"][0].tokenizer
    model = tiny_model(
        first_attention_norm=False, embedding_norm=True, n_layers=3, vocab_size=tokenizer.vocab_size
    )
    with torch.no_grad():
        for name in ("o_proj", "down_proj"):  # it changes nothing
            part = model.layers[0].attention if name == "o_proj" else model.layers[0].feed_forward
            getattr(part, name).weight.zero_()
            getattr(part, name).bias.zero_()
    pipeline = Pipeline(model, tokenizer, LanguageModeling())
    _, lines = remove_parts(model, pipeline, {"layers": 1}, pipelines["decoder"][1])
    assert lines[0] != "layers: 0 of 0 to 2"


@pytest.mark.parametrize("name", ["gated", "grouped", "t5"])
def test_a_directory_goes_out_to_hugging_face(name, tmp_path):
    shape = {
        "gated": {},
        "grouped": {"qk_norm": None, "activation": "swiglu", "norm": "rmsnorm"},
        "t5": {"activation": "relu", "bias": False, "norm": "rmsnorm", "vocab_size": 32,
               "tie_embeddings": True, "logit_scale": 0.25, "relative_max_distance": 20},
    }[name]  # fmt: skip
    model = tiny_model(**{**MODELS[name], **shape})
    miniformer.prune(model, tmp_path / "small", remove={"heads": 0.5, "ffn": 0.25})
    small = type(model).from_pretrained(tmp_path / "small")
    miniformer.to_hf(small, tmp_path / "hf")
    back = miniformer.from_hf(tmp_path / "hf").model
    torch.testing.assert_close(outputs(back), outputs(small), rtol=1e-5, atol=1e-5)
    assert back.config.n_heads == 2


@pytest.mark.catches("prune_measures_no_loss")
def test_the_command(pipelines, tmp_path, capsys):
    pipeline, records = pipelines["classifier"]
    pipeline.save(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"input": "{r["label"]} x", "label": "a"}}\n' for r in records))
    flags = ["prune", str(tmp_path / "model"), str(tmp_path / "out"), "--data", str(data)]
    assert cli.main([*flags, "--remove", "heads=0.5,ffn=0.5,layers=1", "--no-compare"]) == 0
    text = capsys.readouterr().out
    losses = [
        miniformer.load(tmp_path / name).evaluate(str(data), num_resamples=0).metrics["loss"]
        for name in ("model", "out")
    ]
    assert f"loss: {losses[0]:.5f} before, {losses[1]:.5f} after" in text
    assert "removed heads: 2 of 4 of each attention" in text
    config = miniformer.load(tmp_path / "out").model.config
    assert (config.n_heads, config.head_dim, config.d_ff, config.n_layers) == (2, 4, 32, 2)


@pytest.mark.catches("shares_of_none_and_all_are_taken")
@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("heads=1.5", "heads must be a share between 0 and 1, such as 0.5, not 1.5"),
        ("ffn=0", "ffn must be a share between 0 and 1"),
        ("ffn=half", "ffn must be a share between 0 and 1, such as 0.5, not half"),
        ("layers=1.5", "layers must be a number of layers from 1, not 1.5"),
        ("layers=inf", "layers must be a number of layers from 1, not inf"),
        ("heads", "heads has no value, such as heads=0.5"),
        ("head=0.5", "'head' is none of heads, ffn, .*; did you mean 'heads'"),
        ("ffn=0.5,ffn=0.2", "ffn is given twice"),
        ("layers=1,decoder_layers=1", "layers is of both stacks; leave it out"),
        ("heads=0.9", "heads=0.9 of 4 is all of them; 0.25 to 0.75 can be removed"),
        ("heads=0.1", "heads=0.1 of 4 is none of them"),
        ("layers=3", "layers=3, but the model has 3 layers and needs one"),
        ("encoder_layers=1", "encoder_layers is for seq2seq; use layers"),
    ],
)
def test_what_cannot_be_removed(remove, message, pipelines, tmp_path):
    pipeline, records = pipelines["decoder"]
    with pytest.raises(UserError, match=message):
        miniformer.prune(pipeline, tmp_path / "out", remove=remove, data=records)
    assert not list(tmp_path.iterdir())


@pytest.mark.catches(
    "quantized_models_are_pruned", "models_with_transforms_are_pruned",
    "models_with_nan_are_pruned", "layers_ask_for_labels_that_are_refused",
)  # fmt: skip
def test_which_models_are_refused(pipelines, tmp_path):
    pipeline, records = pipelines["decoder"]
    out = tmp_path / "out"
    for changes, message in (
        ({"qk_norm": "projection"}, "qk_norm=projection normalizes all heads together"),
        ({"position": "alibi"}, "the slopes of position=alibi follow from the number of heads"),
        ({"n_heads": 1}, "heads=0.5 of 1 is all of them; no share can be removed"),
    ):
        with pytest.raises(UserError, match=message):
            miniformer.prune(tiny_model(**changes), out, remove="heads=0.5")
    with pytest.raises(UserError, match="layers are chosen by records"):
        miniformer.prune(pipeline, out, remove="layers=1")
    with pytest.raises(UserError, match="data needs a model with its task"):
        miniformer.prune(pipeline.model, out, remove="ffn=0.5", data=records)
    with pytest.raises(UserError, match="text"):
        miniformer.prune(pipeline, out, remove="ffn=0.5", data=[{"input": "x", "label": "a"}])
    embedding = Pipeline(pipeline.model, pipeline.tokenizer, EmbeddingTask(input_kind="text"))
    with pytest.raises(UserError, match="a model for embedding has no labels"):
        miniformer.prune(embedding, out, remove="ffn=0.5", data=records)
    for given in (None, records):  # it does not ask for records that it refuses
        with pytest.raises(UserError, match="layers are chosen by labeled records, and a model"):
            miniformer.prune(embedding, out, remove="ffn=0.5,layers=1", data=given)
    with registered():
        adapted = apply_transforms(tiny_model(), [{"type": "store_int8"}])
    adapted.weight_storage = {}
    with pytest.raises(UserError, match=r"has transforms \(store_int8\); merge them first"):
        miniformer.prune(adapted, out, remove="ffn=0.5")
    model = tiny_model(d_model=32)
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            model.layers[1].attention.v_proj.bias[3] = value
        with pytest.raises(UserError, match=r"v_proj\.bias: has weights that are not finite"):
            miniformer.prune(model, out, remove="ffn=0.5")
    model = tiny_model(d_model=32)
    miniformer.quantize(model, tmp_path / "int8", to="int8")
    stored = Transformer.from_pretrained(tmp_path / "int8")
    with pytest.raises(UserError, match="is quantized already"):
        miniformer.prune(stored, out, remove="ffn=0.5")
    assert not out.exists()
