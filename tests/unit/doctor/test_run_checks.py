"""Checks pass on models of each task, and name what is broken in one of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import miniformer
from miniformer import FeedForward, MultiHeadAttention, UserError, registry
from miniformer.doctor.checks import precision
from miniformer.doctor.outcome import NotApplicable, Note
from miniformer.doctor.run_checks import run_checks
from miniformer.doctor.subject import Subject
from miniformer.exporters.destination import DifferenceError
from miniformer.model.masks import AttentionMask
from tests.kit import ROOT

MODELS = ROOT / "tests" / "fixtures" / "format_1"
TASKS = sorted(path.name for path in MODELS.iterdir())
# An export takes ten seconds; `tests/unit/exporters` compares those.
CHECKS = [name for name in registry.builtin_names("check") if name != "export"]


@pytest.fixture
def directory(tmp_path):
    """A copy of a language model's directory, which a test may break."""
    return Path(shutil.copytree(MODELS / "language_modeling" / "best", tmp_path / "model"))


def outcomes(subject, names=CHECKS):
    return {outcome.name: outcome for outcome in run_checks(subject, names)}


def failed(subject, names=CHECKS):
    return {name for name, outcome in outcomes(subject, names).items() if outcome.problems}


@pytest.mark.catches(
    "description_of_a_check_is_a_problem", "cached_steps_are_compared_with_the_first_position",
    "one_direction_of_all_tensors", "precision_of_other_tokens",
)  # fmt: skip
@pytest.mark.parametrize("task", TASKS)
def test_checks_pass_on_a_model_of_each_task(task):
    results = outcomes(Subject(MODELS / task / "best"))
    assert {name: x.problems for name, x in results.items() if x.problems} == {}
    generates = task in ("language_modeling", "prefix_language_modeling", "seq2seq")
    expected = set() if generates else {"cache", "precision"}
    expected |= {"tokenizer"} if task == "regression" else set()
    assert {name for name, x in results.items() if x.status == "does not apply"} == expected
    assert all(x.notes for x in results.values() if x.status == "does not apply")
    assert all(note.strip() for x in results.values() for note in x.notes)


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def nan_in_a_weight(folder):
    def change(tensors):
        tensors["layers.0.attention.q_proj.weight"][0, 0] = float("nan")

    edit_weights(folder / "model.safetensors", change)


def tensor_missing(folder):
    edit_weights(folder / "model.safetensors", lambda x: x.pop("layers.0.attention.q_proj.weight"))


def head_apart(folder):
    def change(tensors):
        tensors["head.weight"] = tensors["embedding.weight"] + 1

    edit_weights(folder / "model.safetensors", change)


LOSES_A = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}


def card_of(folder):
    return folder / "README.md"


BROKEN_FILES = {
    "config is cut": ("files", lambda d: truncate(d / "config.json")),
    "weights are cut": ("files", lambda d: truncate(d / "model.safetensors")),
    "a tensor is missing": ("files", tensor_missing),
    "another number of layers": (
        "files",
        lambda d: replace_in(d / "config.json", '"n_layers": ', '"n_layers": 1'),
    ),
    "no task": ("files", lambda d: (d / "task.json").unlink()),
    "unknown task": (
        "files",
        lambda d: edit_json(d / "task.json", lambda x: x.update(task="poetry")),
    ),
    "no tokenizer": ("files", lambda d: (d / "tokenizer.json").unlink()),
    "NaN": ("files", nan_in_a_weight),
    "EOS outside of the vocabulary": (
        "files",
        lambda d: edit_json(
            d / "generation_config.json", lambda x: x.update(eos_token_ids=[10**6])
        ),
    ),
    "no decoder of the tokenizer": (
        "tokenizer",
        lambda d: edit_json(d / "tokenizer.json", lambda x: x.update(decoder=None)),
    ),
    "a tied head of its own": ("files", head_apart),
    "a later format": ("files", lambda d: (d / "format_version").write_text("99\n")),
    "a config without causality": (
        "files",
        lambda d: edit_json(d / "config.json", lambda x: x.update(causal=False)),
    ),
    "another width": ("files", lambda d: edit_json(d / "config.json", lambda x: x.update(d_ff=7))),
    "a negative temperature": (
        "files",
        lambda d: edit_json(d / "generation_config.json", lambda x: x.update(temperature=-1)),
    ),
    "a tokenizer that loses characters": (
        "tokenizer",
        lambda d: edit_json(d / "tokenizer.json", lambda x: x.update(normalizer=LOSES_A)),
    ),
    "no card": ("card", lambda d: card_of(d).unlink()),
    "card of another size": ("card", lambda d: replace_in(card_of(d), " parameters", "0 weights")),
    "card without usage": ("card", lambda d: replace_in(card_of(d), "miniformer.load(", "load(")),
    "card with NaN": (
        "card",
        lambda d: card_of(d).write_text(card_of(d).read_text() + "\n| loss | nan |\n"),
    ),
}


@pytest.mark.catches(
    "nan_weights_are_fine", "any_round_trip_is_fine", "any_card_is_complete", "broken_files_pass",
    "lost_characters_are_fine",
)  # fmt: skip
@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_directory_fails_the_check_of_its_part(case, directory):
    check, change = BROKEN_FILES[case]
    names = ["files", "tokenizer", "card"]
    assert failed(Subject(directory), names) == set()
    change(directory)
    failures = failed(Subject(directory), names)
    assert check in failures
    assert failures <= {check, "files"}


@pytest.mark.catches("task_may_have_other_outputs")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda classes: [*classes, "third"], "output_dim must be 3 for this data, not 2"),
        (lambda classes: classes[:1], "classes must be two or more"),
        (lambda classes: classes[:1] * 2, "classes must differ"),
    ],
)
def test_classes_that_are_not_those_of_the_model_fail_the_check_of_the_files(
    change, message, tmp_path
):
    folder = Path(shutil.copytree(MODELS / "classification" / "best", tmp_path / "model"))
    assert failed(Subject(folder), ["files", "tokenizer", "card"]) == set()
    edit_json(folder / "task.json", lambda x: x.update(classes=change(x["classes"])))
    results = outcomes(Subject(folder), ["files", "tokenizer", "card"])
    assert {name for name, outcome in results.items() if outcome.problems} == {"files"}
    assert message in results["files"].problems[0]


class SeesAll(MultiHeadAttention):
    """Attention without a mask."""

    def attend(self, q, k, v, context):
        return super().attend(q, k, v, context._replace(mask=AttentionMask()))


class NextToken(FeedForward):
    """A feed-forward that reads the next token."""

    def forward(self, x):
        return super().forward(torch.cat((x[:, 1:], x[:, :1]), 1))


class BatchMean(FeedForward):
    """A feed-forward that subtracts the mean of the batch."""

    def forward(self, x):
        return super().forward(x - x.mean((0, 1)))


class LengthScale(FeedForward):
    """A feed-forward that depends on the number of positions in a call."""

    def forward(self, x):
        return super().forward(x) * x.shape[1]


class ColumnNumber(FeedForward):
    """A feed-forward that adds the number of a column: not the position of a padded row."""

    def forward(self, x):
        columns = torch.arange(x.shape[1]).to(x)[:, None]
        return super().forward(x) + torch.nn.functional.pad(columns, (0, x.shape[2] - 1))


class LateKeys(MultiHeadAttention):
    """Attention whose cached steps see each key one position late."""

    def attend(self, q, k, v, context):
        if q.shape[2] == 1 < k.shape[2]:
            k = k.roll(1, 2)
        return super().attend(q, k, v, context)


class Noisy(FeedForward):
    """A feed-forward whose dropout stays on in evaluation."""

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.5, training=True)


class WrongBackward(torch.autograd.Function):
    """The identity, whose gradient is too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.1 * grad


class LargeGradient(FeedForward):
    """A feed-forward with a wrong gradient."""

    def forward(self, x):
        return WrongBackward.apply(super().forward(x))


class Detached(FeedForward):
    """A feed-forward whose inputs get no gradient."""

    def forward(self, x):
        return super().forward(x.detach())


class Unsaved(FeedForward):
    """A feed-forward with a factor that is not saved."""

    def forward(self, x):
        return 1.5 * super().forward(x)


def broken_model(part):
    """A pipeline with a part in its last layer that is wrong."""
    pipeline = miniformer.load(MODELS / "language_modeling" / "best")
    layer = pipeline.model.layers[-1]
    name = "attention" if issubclass(part, MultiHeadAttention) else "feed_forward"
    module = part(pipeline.model.config)
    module.load_state_dict(getattr(layer, name).state_dict())
    setattr(layer, name, module.eval())
    return pipeline


BROKEN_MODELS = {
    SeesAll: ("leak", {"batch", "cache"}),
    NextToken: ("leak", {"batch", "cache"}),
    BatchMean: ("batch", {"leak", "cache"}),
    LengthScale: ("cache", {"batch", "precision"}),
    ColumnNumber: ("batch", {"cache", "precision"}),
    LateKeys: ("cache", {"precision"}),
    Noisy: ("leak", {"batch", "cache", "gradients", "precision"}),
    LargeGradient: ("gradients", set()),
    Detached: ("gradients", set()),
    Unsaved: ("saving", set()),
}


@pytest.mark.catches(
    "batch_is_compared_with_itself", "saved_copy_is_the_model", "fixed_inputs_of_checks"
)
@pytest.mark.parametrize("part", BROKEN_MODELS)
def test_broken_model_fails_the_check_of_its_part(part):
    check, consequences = BROKEN_MODELS[part]
    pipeline = broken_model(part)
    subject = Subject(in_memory=pipeline.model)
    subject.__dict__["pipeline"] = pipeline
    names = ["leak", "batch", "cache", "gradients", "precision"]
    failures = failed(subject, names + ["saving"] * (part is Unsaved))
    assert check in failures
    assert failures - {check} <= consequences


def test_precision_fails_for_weights_that_round_badly(monkeypatch):
    model = miniformer.load(MODELS / "language_modeling" / "best").model
    perturbed = miniformer.load(MODELS / "language_modeling" / "best").model
    with torch.no_grad():
        for network in (model, perturbed):
            network.embedding.weight.mul_(30)  # logits far from uniform
        perturbed.embedding.weight.add_(torch.randn(perturbed.embedding.weight.shape))
    make_runtime = precision.make_runtime

    def rounded(network, memory, options):
        network = perturbed if options.weight_dtype == "int4" else network
        return make_runtime(network, memory, options)

    monkeypatch.setattr(precision, "make_runtime", rounded)
    (outcome,) = run_checks(Subject(in_memory=model), ["precision"])
    assert len(outcome.problems) == 1
    assert "int4: " in outcome.problems[0]


@pytest.mark.catches("reason_is_dropped")
def test_check_of_ones_own_gets_what_it_names(monkeypatch, directory):
    def of_directory(directory):
        return [Note(directory.name)]

    def of_tokenizer(tokenizer, strict=True):
        return [Note(tokenizer.vocab_size), *([] if strict else ["not strict"])]

    def of_any(network):
        return ["too deep"] if len(network.layers) > 1 else [Note("shallow")]

    def refuses(model):
        raise NotApplicable("not today")

    def fails(model):
        raise ZeroDivisionError("by zero")

    def complains(model):
        raise UserError("a message")

    checks = [of_directory, of_tokenizer, of_any, refuses, fails, complains]
    monkeypatch.setitem(registry._registered, "check", {x.__name__: x for x in checks})
    names = [check.__name__ for check in checks]
    results = outcomes(Subject(directory), names)
    pipeline = miniformer.load(directory)
    deep = len(pipeline.model.layers) > 1
    assert [(x.status, *x.problems, *x.notes) for x in results.values()] == [
        ("passed", "model"),
        ("passed", str(pipeline.tokenizer.vocab_size)),
        ("failed", "too deep") if deep else ("passed", "shallow"),
        ("does not apply", "not today"),
        ("failed", "ZeroDivisionError: by zero"),
        ("failed", "a message"),
    ]
    in_memory = outcomes(Subject(in_memory=pipeline.model), names)
    assert in_memory["of_directory"].notes == ("it reads a model directory",)
    assert in_memory["of_tokenizer"].notes == ("it reads a model directory",)
    assert results["refuses"].lines() == ["does not apply  refuses: not today"]
    assert results["fails"].lines()[1].strip() == "ZeroDivisionError: by zero"
    assert results["of_any"].command == "miniformer doctor DIR --check of_any"


@pytest.mark.catches("difference_of_an_export_is_a_note")
def test_export_check_tells_differences_from_refusals(monkeypatch, directory):
    """Real exports are compared in tests/unit/exporters."""

    def exporter(error):
        def export(directory, out):
            if error is not None:
                raise error
            return "written\nlargest difference of outputs 1e-7"

        return export

    for error, status, line in (
        (None, "passed", "onnx: largest difference of outputs 1e-7"),
        (DifferenceError("graphs differ"), "failed", "onnx: graphs differ"),
        (UserError("no such part"), "does not apply", "onnx does not take this model: no such"),
    ):
        monkeypatch.setitem(registry._registered, "exporter", {"onnx": exporter(error)})
        (outcome,) = run_checks(Subject(directory), ["export"])
        assert outcome.status == status
        assert line in "\n".join(outcome.lines())


@pytest.mark.catches("speed_of_decoding_is_left_out")
def test_speed_names_positions_and_tokens(directory):
    (outcome,) = run_checks(Subject(directory), ["speed"])
    forward, decoding = outcome.notes
    assert "positions/s" in forward
    assert "tokens/s" in decoding
