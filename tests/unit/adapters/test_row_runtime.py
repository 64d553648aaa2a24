"""Generation of a batch whose rows have different adapters: each row is as alone."""

import pytest
import torch

from miniformer import Seq2SeqTransformer, UserError, adapters
from miniformer.adapters.row_runtime import RowRuntime
from miniformer.config import GenerationConfig
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.runtime import make_runtime
from tests.kit import tiny_model
from tests.unit.adapters.test_modules import randomize

NAMES = ["b", None, "a", "c", "b"]
PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [1, 2, 3]]
SOURCES = [[3, 4], [5], [3, 4], [3, 4], [6, 7, 8]]


def adapted_model(**options):
    model = tiny_model(max_seq_len=24, **options)
    for name, method in (("a", "lora"), ("b", "ia3"), ("c", "bottleneck")):
        adapters.add(model, method, name=name)
        randomize(model, name)
    return model.eval()


def decode(model, inputs, options):
    return [(x.tokens, x.logprobs) for x in generate(model, inputs, options)]


@pytest.mark.catches("rows_keep_the_adapters_of_their_first_places")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("decoder", {"max_new_tokens": 8}),
        ("decoder", {"max_new_tokens": 30, "context_shift": True}),
        ("decoder", {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2}),
        ("seq2seq", {"max_new_tokens": 6}),
        ("seq2seq", {"max_new_tokens": 4, "num_beams": 2}),
    ],
)
def test_rows_of_a_batch_are_decoded_as_alone(kind, options):
    """Rows end at different steps, so that they are removed from the batch."""
    seq2seq = kind == "seq2seq"
    model = adapted_model(**({"model": Seq2SeqTransformer, "causal": False} if seq2seq else {}))
    inputs = [
        GenerationInput(prompt, source if seq2seq else None)
        for prompt, source in zip(PROMPTS, SOURCES, strict=True)
    ]
    config = GenerationConfig(temperature=0, eos_id=2, stop_token_ids=[5, 9, 13, 21], **options)
    alone = []
    for name, item in zip(NAMES, inputs, strict=True):
        adapters.use(model, name)
        alone += decode(model, [item], config)
    adapters.use(model, NAMES)
    together = decode(model, inputs, config)
    if config.num_beams == 1:
        assert len({len(tokens) for tokens, _ in together}) > 1
    for (tokens, logprobs), (expected, expected_logprobs) in zip(together, alone, strict=True):
        assert tokens == expected
        torch.testing.assert_close(
            torch.tensor(logprobs), torch.tensor(expected_logprobs), rtol=0, atol=1e-5
        )
    adapters.use(model, "a")
    assert not isinstance(make_runtime(model, [], GenerationConfig()), RowRuntime)


def test_what_rows_cannot_have_is_refused():
    model = adapted_model()
    adapters.use(model, ["a", "b"])
    with pytest.raises(UserError, match="the batch has 1 rows, but adapters are in use for 2"):
        model.generate([[1, 2]], 3)
    with pytest.raises(UserError, match="weight_dtype=int8 needs one adapter for all rows"):
        model.generate([[1], [2]], 3, weight_dtype="int8")
