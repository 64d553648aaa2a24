"""Adapters equal those of Hugging Face's peft, and each reads the files of the other.

In an environment with the package `peft`; `python -m tests.slow peft` runs it.
"""

import copy
import functools

import pytest
import torch
from safetensors.torch import load_file

import miniformer
from miniformer import Seq2SeqTransformer, adapters
from miniformer.adapters.exchange.peft_export import write_peft
from miniformer.adapters.tensors import PREFIX, adapter_tensors
from tests.kit import tiny_model
from tests.parity import published
from tests.parity.test_hugging_face import make_of

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("default")
MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
# Options of ours, and class and options of theirs.
METHODS = {
    "lora": ("lora", {"r": 4, "alpha": 8}, "LoraConfig", {"r": 4, "lora_alpha": 8}),
    "rslora": (
        "lora",
        {"r": 4, "alpha": 3, "rslora": True},
        "LoraConfig",
        {"r": 4, "lora_alpha": 3, "use_rslora": True},
    ),
    "patterns": (
        "lora",
        {"r": 4, "alpha": 8, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        "LoraConfig",
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"o_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    ),
    "dora": ("dora", {"r": 4, "alpha": 8}, "LoraConfig", {"r": 4, "lora_alpha": 8, "use_dora": 1}),
    "ia3": ("ia3", {}, "IA3Config", {"feedforward_modules": ["down_proj"]}),
}
FAMILIES = ("gpt2", "gpt_neox", "llama", "phi3", "bert", "t5", "bart")
FUSED = ("gpt2", "gpt_neox", "phi3")


def their_config(name):
    _, _, kind, options = METHODS[name]
    if "use_dora" in options:
        options = {**options, "use_dora": True}
    targets = ["k_proj", "v_proj", "down_proj"] if name == "ia3" else MATRICES
    return getattr(peft, kind)(target_modules=targets, **options)


def randomize(model, names=("lora_", "ia3_l", "magnitude")):
    """Random values of the trained parameters, so that no product is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(name in key for name in names):
                parameter.add_(0.1 * torch.randn_like(parameter))


def batches(model, vocab_size, count=5):
    torch.manual_seed(2)
    seq2seq = isinstance(model, Seq2SeqTransformer)
    sizes = ((3, 6), (3, 5)) if seq2seq else ((3, 6),)
    return [tuple(torch.randint(4, vocab_size, size) for size in sizes) for _ in range(count)]


def steps(model, inputs, call):
    """Losses of AdamW steps, and the gradients of the first one."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    outputs, first = [], None
    for batch in inputs:
        optimizer.zero_grad()
        logits = call(model, batch)
        logits.square().mean().backward()
        first = first or [p.grad.clone() for p in parameters if p.grad is not None]
        optimizer.step()
        outputs.append(logits.detach())
    model.eval()
    return outputs, first


@pytest.mark.parametrize("seq2seq", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_own_modules(name, seq2seq, tmp_path):
    """Outputs, gradients and five steps on our own modules; files are read in both directions."""
    method, options, *_ = METHODS[name]
    kind = {"model": Seq2SeqTransformer, "causal": False} if seq2seq else {}
    base = tiny_model(**kind)
    theirs = peft.get_peft_model(copy.deepcopy(base), their_config(name))
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    base.save_pretrained(tmp_path / "base")
    targets = {} if name == "ia3" else {"targets": MATRICES}
    ours = adapters.add(copy.deepcopy(base), method, **options, **targets)
    from miniformer.adapters.directory import read_adapter
    from miniformer.adapters.tensors import load_tensors

    files = read_adapter(tmp_path / "theirs")
    load_tensors(ours, "default", files.tensors, "theirs")
    written = {PREFIX + key: x for key, x in adapter_tensors(ours, "default").items()}
    stored = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[key], stored[key]) for key in stored)
    inputs = batches(base, 31)
    actual, own_gradients = steps(ours, inputs, lambda m, batch: m(*batch))
    expected, gradients = steps(theirs, inputs, lambda m, batch: m(*batch))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert len(own_gradients) == len(gradients)
    torch.testing.assert_close(
        sorted(g.norm().item() for g in own_gradients),
        sorted(g.norm().item() for g in gradients), rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    def make(name):
        kind, settings = published.draw(name, 0)
        return make_of(kind, settings, tmp_path_factory.mktemp(name), odd=False)

    return functools.cache(make)


def call_theirs(model, batch):
    if len(batch) == 2:
        return model(input_ids=batch[0], decoder_input_ids=batch[1]).logits
    return model(input_ids=batch[0]).logits


def linear_names(theirs):
    """Ends of the names of the linear maps of the layers."""
    kinds = ("Linear", "Conv1D")
    return sorted({
        name.rpartition(".")[2]
        for name, module in theirs.named_modules()
        if type(module).__name__ in kinds and any(part.isdigit() for part in name.split("."))
    })  # fmt: skip


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_of_peft_on_a_twin_is_read(family, dora, twin, tmp_path):
    """peft -> load -> the same outputs; five steps too where no tensors are fused."""
    case = twin(family)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=linear_names(case.theirs), use_dora=dora,
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(copy.deepcopy(case.theirs), config)
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    pipeline = miniformer.load(case.ours, adapter=tmp_path / "theirs")
    ours = pipeline.model
    inputs = batches(ours, case.theirs.config.vocab_size)
    theirs.eval()
    with torch.no_grad():
        expected, actual = call_theirs(theirs, inputs[0]), ours(*inputs[0])
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=5e-5)
        adapters.merge(ours)
        torch.testing.assert_close(ours(*inputs[0]), expected, rtol=1e-5, atol=5e-5)
        adapters.unmerge(ours)
        assert torch.equal(ours(*inputs[0]), actual)
    write_peft(pipeline, tmp_path / "again", family=case.theirs.config.model_type)
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    stored = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[key], stored[key]) for key in stored)
    if family not in FUSED:
        train = {key: x for key, x in theirs.named_parameters() if x.requires_grad}
        assert sum(x.numel() for x in train.values()) == sum(
            x.numel() for x in ours.parameters() if x.requires_grad
        )
        case.theirs.config.dropout = 0.0
        actual, own_gradients = steps(_without_dropout(ours), inputs, lambda m, b: m(*b))
        expected, gradients = steps(_without_dropout(theirs), inputs, call_theirs)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            sorted(g.norm().item() for g in own_gradients),
            sorted(g.norm().item() for g in gradients), rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def _without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_own_adapter_on_a_twin_is_read_by_peft(family, method, twin, tmp_path):
    """add -> write_peft -> PeftModel on the twin: the same outputs."""
    case = twin(family)
    pipeline = miniformer.load(case.ours)
    ours = pipeline.model
    scales = {"alpha": 6, "r": 3, "alpha_pattern": {"v_proj": 2}, "targets": "all-linear"}
    adapters.add(ours, method, **({} if method == "ia3" else scales))
    randomize(ours)
    ours.eval()
    write_peft(pipeline, tmp_path / "out", family=case.theirs.config.model_type)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(case.theirs), tmp_path / "out").eval()
    batch = batches(ours, case.theirs.config.vocab_size, 1)[0]
    with torch.no_grad():
        plain = case.theirs.eval()
        assert not torch.allclose(call_theirs(plain, batch), call_theirs(theirs, batch), atol=1e-3)
        torch.testing.assert_close(ours(*batch), call_theirs(theirs, batch), rtol=1e-5, atol=5e-5)


def test_peft_merges_a_lora_of_a_tied_embedding_wrongly(twin, tmp_path):
    """peft's merged model differs from its unmerged one; here the head is untied first."""
    case = twin("gpt2")
    theirs = copy.deepcopy(case.theirs)
    assert theirs.config.tie_word_embeddings
    config = peft.LoraConfig(r=3, target_modules=["wte"])
    model = peft.get_peft_model(theirs, config)
    randomize(model)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    batch = batches(None, case.theirs.config.vocab_size, 1)[0]
    model.eval()
    with torch.no_grad():
        unmerged = call_theirs(model, batch)
        merged = call_theirs(model.merge_and_unload(), batch)
    assert not torch.allclose(merged, unmerged, atol=1e-2)
    with pytest.raises(miniformer.UserError, match="untie_head"):
        miniformer.load(case.ours, adapter=tmp_path / "theirs")
    pipeline = miniformer.load(case.ours)
    adapters.add(pipeline.model, targets=["embedding"], r=3, untie_head=True)
    part = pipeline.model.embedding.adapters["default"]
    stored = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    with torch.no_grad():
        for key, tensor in stored.items():
            getattr(part, key.rpartition(".")[2]).copy_(tensor)
        torch.testing.assert_close(pipeline.model.eval()(*batch), unmerged, rtol=1e-5, atol=5e-5)
        merged = miniformer.merge_transforms(pipeline.model)
        torch.testing.assert_close(merged(*batch), unmerged, rtol=1e-5, atol=5e-5)


def test_new_token_rows_are_those_of_peft(twin, tmp_path):
    case = twin("llama")
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], trainable_token_indices=[5, 9])
    theirs = peft.get_peft_model(copy.deepcopy(case.theirs), config)
    randomize(theirs, ("lora_", "trainable_tokens"))
    theirs.save_pretrained(tmp_path / "theirs")
    pipeline = miniformer.load(case.ours, adapter=tmp_path / "theirs")
    batch = (torch.tensor([[5, 6, 9, 7]]),)
    with torch.no_grad():
        expected = call_theirs(theirs.eval(), batch)
        torch.testing.assert_close(pipeline.model(*batch), expected, rtol=1e-5, atol=5e-5)
    write_peft(pipeline, tmp_path / "again")
    read = peft.PeftModel.from_pretrained(copy.deepcopy(case.theirs), tmp_path / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(call_theirs(read, batch), expected, rtol=1e-5, atol=5e-5)
