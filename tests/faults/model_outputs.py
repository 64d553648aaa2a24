"""Faults in inputs and outputs of `miniformer.model`: embeddings, positions, layers, heads."""

from tests.faults import fault


@fault("miniformer.model.attention_backends.functions:plain")
def attention_weights_of_padding_remain(original):
    """The recorded weights of a query without keys are those of an even softmax."""

    def plain(q, k, v, mask, scores):
        out = original(q, k, v, mask._replace(fully_masked=None), scores)
        return out if mask.fully_masked is None else out.masked_fill(mask.fully_masked, 0.0)

    return plain


@fault("miniformer.model.outputs:Recorder.finish")
def last_hidden_state_is_not_normalized(original):
    """The last hidden state is that of the last layer's input."""

    def finish(self, x, layers):
        return original(self, self.hidden_states[-1] if self.hidden_states else x, layers)

    return finish


@fault("miniformer.model.stack:Stack._attention_context")
def mask_follows_given_positions(original):
    """A query sees the keys of smaller given positions."""

    def _attention_context(self, x, attention, visibility, backend, lengths, positions):
        if positions is not None:
            visibility = visibility._replace(
                query_positions=positions,
                key_positions=positions,
                query_segments=positions * 0 + 1,
                key_segments=positions * 0 + 1,
                is_dense=False,
            )
        return original(self, x, attention, visibility, backend, lengths, positions)

    return _attention_context


@fault("miniformer.model.masks:make_sequence_lengths")
def lengths_ignore_given_positions(original):
    """Rotary scaling sees the number of tokens, not the largest given position."""

    def make_sequence_lengths(length, *, positions=None, **rows):
        return original(length, **rows)

    return make_sequence_lengths


@fault("miniformer.model.stack:Stack.run_layers")
def later_layers_embed_positions_again(original):
    """A run that continues at a layer begins with the positions and the norm of the embedding."""

    def run_layers(self, x, *, start=None, **options):
        if start is not None:
            import torch

            vectors = self.position.vectors(torch.arange(x.shape[1])[None])
            x = x if vectors is None else x + vectors
            x = x if self.embedding_norm is None else self.embedding_norm(x)
        return original(self, x, start=start, **options)

    return run_layers


@fault("miniformer.model.head:pool_segments")
def packed_vectors_are_those_of_the_row(original):
    """Each packed sequence has the vector of its whole row."""

    def pool_segments(features, attention_mask, segment_ids, pooling):
        vectors = original(features, attention_mask, (segment_ids > 0).long(), pooling)
        return vectors.expand(-1, int(segment_ids.max()), -1)

    return pool_segments


@fault("miniformer.model.attention:MultiHeadAttention.kv_heads")
def pruned_layer_has_the_heads_of_the_config(original):
    """The cache has room for the key-value heads that were pruned."""
    return property(lambda self: 4)
