"""Faults in ONNX graphs, their programs and their weights."""

from tests.faults import fault


@fault("miniformer.exporters.programs:DecoderProgram.forward")
def graph_sees_padding(original):
    """All columns but the first are real for the graph of a decoder."""

    def forward(self, ids, attention_mask, keys, values, *rest):
        seen = attention_mask.cumsum(1).clamp_max(1)
        return original(self, ids, seen, keys, values, *rest)

    return forward


@fault("miniformer.model.cache.static_view:TensorCache.append")
def graph_orders_its_past_wrongly(original):
    """New keys and values come before those of the past, by one column."""

    def append(self, layer, keys, values):
        keys, values = original(self, layer, keys, values)
        return keys.roll(1, 2), values.roll(1, 2)

    return append


@fault("miniformer.exporters.programs:EncoderProgram.forward")
def graph_swaps_keys_and_values_of_the_source(original):
    """The encoder's graph calls the keys of the source its values."""

    def forward(self, source, source_mask=None):
        keys, values = original(self, source, source_mask)
        return values, keys

    return forward


@fault("miniformer.exporters.programs:ModelProgram.forward")
def graph_lacks_the_wide_head(original):
    """The graph of a classifier has the Transformer alone."""

    def forward(self, inputs, attention_mask, *extra):
        wide_head, self.model.wide_head = self.model.wide_head, None
        try:
            return original(self, inputs, attention_mask, *extra)
        finally:
            self.model.wide_head = wide_head

    return forward


@fault("miniformer.exporters.programs:ModelProgram.forward")
def graph_has_other_classes(original):
    """The outputs of a classifier are in the opposite order."""

    def forward(self, inputs, attention_mask, *extra):
        return original(self, inputs, attention_mask, *extra).flip(-1)

    return forward


@fault("miniformer.exporters.onnx.graphs:share_tied_head")
def graph_has_a_tied_head_twice(original):
    """The file has the weight of a tied head twice."""
    return lambda model: None


@fault("miniformer.exporters.onnx.weights:round_blocks")
def halves_of_bytes_are_swapped(original):
    """The first of two values of 4 bits is the upper half of a byte, or bytes are reversed."""

    def round_blocks(matrix, bits):
        blocks = original(matrix, bits)
        if bits == 4:
            return blocks._replace(values=blocks.values << 4 | blocks.values >> 4)
        return blocks._replace(values=blocks.values[..., ::-1])

    return round_blocks


@fault("miniformer.exporters.verify:Comparison.check")
def graphs_that_differ_are_kept(original):
    """A comparison with a large difference does not end an export."""
    return lambda self, limit=None: None


@fault("miniformer.exporters.onnx.losses:data_loss")
def loss_on_records_is_a_sum(original):
    """The loss on records is not divided by their number."""
    return lambda source, graphs, path: 2 * original(source, graphs, path)


@fault("miniformer.model.wide_head.integer_forms:find_sorted")
def search_of_an_export_is_off_by_one(original):
    """In an export, the search in sorted keys finds the key before."""

    def find_sorted(keys, values):
        from miniformer.model.wide_head import integer_forms

        index = original(keys, values)
        return (index - 1).clamp_min(0) if integer_forms.is_exporting() else index

    return find_sorted


@fault("miniformer.exporters.onnx.initializers:Initializers.remove_unused")
def unused_tensors_stay_in_the_graph(original):
    """Tensors that were replaced are written, too."""
    return lambda self: None


@fault("miniformer.exporters.onnx.session:OnnxModel.outputs")
def graphs_are_compared_without_a_mask(original):
    """Padding of a batch is given to the graph as real tokens."""

    def outputs(self, batch):
        return original(self, {name: x for name, x in batch.items() if name != "attention_mask"})

    return outputs


@fault("miniformer.exporters.onnx.write:export_onnx")
def graphs_are_not_compared(original):
    """The comparison is left out without a word."""

    def export_onnx(directory, out, *, weights="float32", data=None, verify=True):
        return original(directory, out, weights=weights, data=data, verify=False)

    return export_onnx


@fault("miniformer.exporters.source:read_source")
def bare_models_need_a_task(original):
    """A directory without a task is refused."""

    def read_source(directory):
        from miniformer.checkpoint.pipeline import load

        load(directory)
        return original(directory)

    return read_source


@fault("miniformer.exporters.hf:export_hf")
def families_are_not_passed_on(original):
    """`--family` is ignored."""
    return lambda directory, out, *, family=None: original(directory, out)


@fault("miniformer.exporters.onnx.attention:attention")
def graph_scores_have_no_scale(original):
    """Scores of attention in the graph are not divided by the root of the width."""

    def attention(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
        enable_gqa=False,
    ):  # fmt: skip
        return original(query, key, value, attn_mask, dropout_p, is_causal, 1.0, enable_gqa)

    return attention
