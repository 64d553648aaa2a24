"""Faults in `miniformer.inspection`."""

from tests.faults import fault


@fault("miniformer.inspection.inspect:_stacks")
def attention_of_inspection_is_the_first_layers(original):
    """Each layer has the attention of the first one."""

    def stacks(model, output):
        hidden, attentions = original(model, output)
        return hidden, {name: [xs[0]] * len(xs) for name, xs in attentions.items()}

    return stacks


@fault("miniformer.inspection.inspect:_logprobs")
def logprobs_are_those_of_the_next_token(original):
    """Log-probabilities are one position too early."""

    def logprobs(task, model, tokenizer, reading, logits):
        values = original(task, model, tokenizer, reading, logits)
        return [*values[1:], values[0]]

    return logprobs


@fault("miniformer.inspection.inspect:masked_logprobs")
def masked_token_is_visible(original):
    """A masked language model sees the token whose log-probability it computes."""

    def masked_logprobs(model, ids, skipped, mask, batch_tokens=4096):
        logprobs = model(model.embedding.weight.new_tensor([ids]).long())[0].log_softmax(-1)
        return [
            None if token in skipped else float(logprobs[n, token]) for n, token in enumerate(ids)
        ]

    return masked_logprobs


@fault("miniformer.inspection.inspect:head_inputs")
def lens_without_the_final_norm(original):
    """Hidden states reach the head without the final norm."""
    return lambda stack, states: states


@fault("miniformer.inspection.inspect:head_inputs")
def lens_of_the_last_layer_is_normed_twice(original):
    """The final norm is also applied to what is behind it."""
    return lambda stack, states: [stack.final_norm(x) for x in states]


@fault("miniformer.inspection.lens:LayerOutputs.embed")
def lens_without_pooling(original):
    """The head of a classifier reads the last position."""
    return lambda self, *arguments, **inputs: self._features[:, -1]


@fault("miniformer.inspection.plots:_select")
def attention_plot_is_of_the_first_layer(original):
    """A plot shows the first layer whatever is asked for."""
    return lambda items, index, name: original(items, 0 if name == "layer" else index, name)


@fault("miniformer.inspection.text:strongest")
def strongest_attention_is_the_weakest(original):
    """The keys with the least weight are printed."""
    return lambda weights, names: original(-weights, names)


@fault("miniformer.inspection.result:Inspection.to_json")
def inspect_prints_no_json(original):
    """The JSON has no predictions."""
    return lambda self: {**original(self), "lens": []}


@fault("miniformer.inspection.drawing:layer_boxes")
def drawing_is_always_pre_norm(original):
    """Norms stand before the sub-layers whatever the config says."""

    def layer_boxes(config, *, cross=False):
        import dataclasses

        return original(
            dataclasses.replace(config, norm_placement=None, pre_norm=True), cross=cross
        )

    return layer_boxes


@fault("miniformer.inspection.reading:token_names")
def tokens_of_inspection_are_reversed(original):
    """The names of the positions are in reverse order."""
    return lambda tokenizer, ids: original(tokenizer, ids)[::-1]


@fault("miniformer.inspection.page:_lens_table")
def page_of_inspection_has_no_lens(original):
    """The page has no table of predictions."""
    return lambda inspection: ""


@fault("miniformer.commands.inspect:run")
def inspect_ignores_top_k(original):
    """The command always prints five predictions."""
    return lambda values: original({**values, "top_k": 5})


@fault("miniformer.inspection.inspect:Inspection")
def lens_does_not_say_that_it_lacks_the_wide_head(original):
    """The result is that of a model without a wide head."""
    return lambda **values: original(**{**values, "has_wide_head": False})
