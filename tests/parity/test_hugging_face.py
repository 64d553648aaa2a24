"""Every family, both ways: a tiny random model of transformers', here and back again.

theirs -> save_pretrained -> import_hf -> a model directory of ours -> to_hf -> from_pretrained
"""

import functools
import tempfile
import types
from pathlib import Path

import pytest
import torch

import miniformer
from miniformer.config.families import FAMILIES as PRESETS
from tests.parity import published
from tests.parity.published import LENGTH, PAD, V

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")
transformers.logging.set_verbosity_error()
DRAWS = range(5)
SHORT = 7
CATCHES = {
    "gpt_neox": pytest.mark.catches("heads_of_gpt_neox_are_taken_for_one"),
    "roberta": pytest.mark.catches("positions_begin_with_those_of_padding"),
    "phi3": pytest.mark.catches("gate_of_phi3_is_its_up"),
    "gpt2": pytest.mark.catches("square_weights_of_gpt2_stay_transposed"),
    "t5": pytest.mark.catches("logits_of_t5_are_not_scaled"),
    "t5_v1_1": pytest.mark.catches("gated_t5_passes_for_plain"),
    "gemma": pytest.mark.catches("gated_gelu_is_exact"),
    "llama": pytest.mark.catches("rotation_has_the_usual_base"),
    "gemma2": pytest.mark.catches("windows_are_in_the_other_layers"),
}
every_draw = pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, marks=CATCHES.get(name, ()) if number == 0 else ())
        for name in published.FAMILIES
        for number in DRAWS
    ],
)


def make(name, number, folder):
    """Their model, where it was saved, and what we made of it."""
    kind, settings = published.draw(name, number)
    kind = getattr(transformers, kind)
    torch.manual_seed(number)
    theirs = kind(kind.config_class(**settings, attn_implementation="eager")).eval()
    untied = settings.get("tie_word_embeddings") is False and name.startswith("t5")
    with torch.no_grad():
        if untied:  # they tie T5's as it is built, whatever the config says
            theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.clone())
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for each, buffer in theirs.named_buffers():
            if each == "final_logits_bias" and number % 2:
                buffer.normal_()
    saved, ours = folder / "theirs", folder / "ours"
    theirs.save_pretrained(saved)
    miniformer.import_hf(saved, ours, dropout=0.0)
    return types.SimpleNamespace(
        theirs=theirs, saved=saved, ours=ours,
        model=miniformer.load(ours).model, seq2seq=theirs.config.is_encoder_decoder,
        causal=miniformer.load(ours).model.config.causal,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`make`, once for each draw."""
    return functools.cache(lambda *draw: make(*draw, tmp_path_factory.mktemp("family")))


def read(theirs, folder):
    """Their model from a folder, as it computes elsewhere, and what they tell of the reading."""
    return type(theirs).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )


def ids(*shape, low=4):
    return torch.randint(low, V - 7, shape)


def their_logits(theirs, source, target=None):
    with torch.no_grad():
        if target is None:
            return theirs(input_ids=source).logits
        return theirs(input_ids=source, decoder_input_ids=target).logits


def close(actual, wanted, atol=2e-5):  # of logits of several, summed up in another order
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=atol)


def test_every_family_is_here():
    assert published.FAMILIES.keys() == PRESETS.keys()


def check_logits(case):
    source, target = ids(2, LENGTH), ids(2, LENGTH - 2) if case.seq2seq else None
    inputs = [source] if target is None else [source, target]
    with torch.no_grad():
        close(case.model(*inputs), their_logits(case.theirs, *inputs))


def check_hidden_states(case):
    """What the head reads, and of an encoder and decoder what both write."""
    source, target = ids(2, LENGTH), ids(2, LENGTH - 2)
    with torch.no_grad():
        if not case.seq2seq:
            wanted = case.theirs.base_model(input_ids=source).last_hidden_state
            close(case.model.features(source), wanted)
            return
        wanted = case.theirs(input_ids=source, decoder_input_ids=target, output_hidden_states=True)
        memory = case.model.encode(source)
        close(memory.features, wanted.encoder_last_hidden_state)
        close(case.model.features(target, memory), wanted.decoder_hidden_states[-1])


def check_left_padded(case):
    """Each row of a batch that is padded on the left is what theirs says of it alone."""
    source, real = ids(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, : LENGTH - SHORT] = False
    source[~real] = PAD
    target = ids(2, 6)
    with torch.no_grad():
        for row in range(2):
            alone = source[row][real[row]][None]
            if case.seq2seq:
                ours = case.model(source, target, real)[row]
                close(ours, their_logits(case.theirs, alone, target[row][None])[0])
            else:
                ours = case.model(source, real)[row][real[row]]
                close(ours, their_logits(case.theirs, alone)[0])


def check_training(case):
    """Losses of five steps of AdamW."""
    ours, theirs = miniformer.load(case.ours).model, read(case.theirs, case.saved)[0]
    theirs.train()
    ours.train()
    if hasattr(theirs, "final_logits_bias") and ours.head.bias is not None:
        ours.head.bias.requires_grad_(False)  # a buffer of theirs, which does not learn
    steps = [
        torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=1e-2)
        for model in (ours, theirs)
    ]
    source, target, labels = ids(4, LENGTH), ids(4, LENGTH), ids(4, LENGTH)
    inputs = [source, target] if case.seq2seq else [source]
    named = dict(zip(["input_ids", "decoder_input_ids"], inputs, strict=False))
    for _ in range(5):
        losses = []
        for model, step in zip((ours, theirs), steps, strict=True):
            out = model(*inputs) if model is ours else model(**named).logits
            loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), labels.flatten())
            step.zero_grad()
            loss.backward()
            step.step()
            losses.append(loss.detach())
        close(*losses, atol=1e-4)


def check_greedy(case):
    """The same tokens, one prompt alone and two of unequal length at once."""
    prompts = [ids(1, 7), ids(1, 4)]
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": PAD}
    wanted = [case.theirs.generate(prompt, **options)[0].tolist() for prompt in prompts]
    rows = [prompt[0].tolist() for prompt in prompts]
    if case.seq2seq:
        given = {"temperature": 0.0, "start_id": 2}
        assert [[2, *row] for row in case.model.generate(rows, 6, **given)] == wanted
    else:
        assert case.model.generate(rows, 6, temperature=0.0) == wanted


def check_beams(case):
    """The same best hypothesis of a search that stops when theirs must, too."""
    eos = 9
    options = {
        "do_sample": False, "max_new_tokens": 7, "num_beams": 4, "early_stopping": "never",
        "length_penalty": 0.7, "eos_token_id": eos, "pad_token_id": PAD,
    }  # fmt: skip
    for prompt in (ids(1, 7), ids(1, 4)):
        wanted = case.theirs.generate(prompt, **options)[0].tolist()
        given = {"num_beams": 4, "length_penalty": 0.7, "eos_id": eos}
        if case.seq2seq:
            found = [2, *case.model.generate(prompt.tolist(), 7, start_id=2, **given)[0]]
        else:
            found = case.model.generate(prompt.tolist(), 7, **given)[0]
        assert found == (wanted[:-1] if wanted[-1] == eos else wanted)


def check_export(case):
    """transformers loads what we write, and it is what it was."""
    with tempfile.TemporaryDirectory() as folder:
        out = miniformer.to_hf(case.ours, Path(folder) / "out")
        again, told = read(case.theirs, out)
        assert not told["unexpected_keys"]
        assert not told["mismatched_keys"]
        # A bias that is zero, and one that is of no use where the head is not tied.
        unused = {"final_logits_bias", "cls.predictions.bias", "lm_head.bias"}
        assert set(told["missing_keys"]) <= unused
        source, target = ids(2, LENGTH), ids(2, LENGTH - 2) if case.seq2seq else None
        inputs = [source] if target is None else [source, target]
        assert torch.equal(their_logits(again, *inputs), their_logits(case.theirs, *inputs))


CHECKS = {
    "logits": check_logits,
    "hidden states": check_hidden_states,
    "left-padded": check_left_padded,
    "5 steps": check_training,
    "greedy": check_greedy,
    "beams": check_beams,
    "export": check_export,
}


@every_draw
@pytest.mark.parametrize("check", CHECKS)
def test_family(name, number, check, made):
    case = made(name, number)
    if check in ("greedy", "beams") and not case.seq2seq and not case.causal:
        return
    torch.manual_seed(number)
    CHECKS[check](case)
