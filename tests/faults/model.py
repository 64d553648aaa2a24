"""Faults in `miniformer.model`."""

from tests.faults import fault

# Masks and positions.


@fault("miniformer.model.masks:make_mask")
def causal_mask_shows_the_next_token(original):
    """A causal mask lets each query see the token after its own."""

    def make_mask(visibility, *, explicit=False):
        import torch

        mask = original(visibility, explicit=True)
        if not visibility.causal or mask.allowed is None:
            return mask
        return mask._replace(allowed=mask.allowed | torch.roll(mask.allowed, 1, -1))

    return make_mask


@fault("miniformer.model.masks:make_mask")
def window_sees_one_token_more(original):
    """A sliding window reaches one token too far."""

    def make_mask(visibility, *, explicit=False):
        if visibility.window is not None:
            further = 1 if visibility.causal else 2
            visibility = visibility._replace(window=visibility.window + further)
        return original(visibility, explicit=explicit)

    return make_mask


@fault("miniformer.model.masks:make_visibility")
def padding_is_attended_to(original):
    """The attention mask hides no key."""

    def make_visibility(*args, attention_mask=None, **kwargs):
        visibility = original(*args, attention_mask=attention_mask, **kwargs)
        if attention_mask is None or kwargs.get("segment_ids") is not None:
            return visibility
        import torch

        return visibility._replace(
            query_segments=torch.ones_like(visibility.query_segments),
            key_segments=torch.ones_like(visibility.key_segments),
        )

    return make_visibility


@fault("miniformer.model.masks:make_visibility")
def packed_documents_see_each_other(original):
    """Segments of a row are one segment."""

    def make_visibility(*args, segment_ids=None, **kwargs):
        visibility = original(*args, segment_ids=segment_ids, **kwargs)
        if segment_ids is None:
            return visibility
        real = (visibility.query_segments != 0).long()
        return visibility._replace(query_segments=real, key_segments=real)

    return make_visibility


@fault("miniformer.model.masks:make_positions")
def positions_do_not_restart_with_a_document(original):
    """Positions of a packed row continue across documents."""

    def make_positions(*args, segment_ids=None, **kwargs):
        return original(*args, **kwargs)

    return make_positions


@fault("miniformer.model.masks:make_positions")
def padding_takes_a_position(original):
    """Positions are columns, padding or not."""

    def make_positions(*args, attention_mask=None, **kwargs):
        return original(*args, **kwargs)

    return make_positions


@fault("miniformer.model.masks:make_sequence_lengths")
def dynamic_scaling_counts_padding(original):
    """The length of a sequence is that of its row."""

    def make_lengths(length, **kwargs):
        return original(length, device=kwargs["device"])

    return make_lengths


@fault("miniformer.model.masks:make_cross_mask")
def padding_of_a_source_is_attended_to(original):
    """A decoder sees all of its source."""
    return lambda source_mask: original(None)


@fault("miniformer.model.rotary_scaling:scaled_inv_freq")
def longrope_stays_short(original):
    """LongRoPE's factors are those of a short text, however long it is."""

    def scaled_inv_freq(scaling, *, base, dim, seq_lens):
        import torch

        if scaling is not None and scaling["type"] == "longrope":
            seq_lens = torch.ones_like(seq_lens)
        return original(scaling, base=base, dim=dim, seq_lens=seq_lens)

    return scaled_inv_freq


@fault("miniformer.model.position:apply_rotary")
def rotary_pairs_neighbors(original):
    """Rotary pairs neighboring dimensions with the angles of halves."""

    def apply_rotary(x, rotation):
        import torch

        dim = 2 * rotation.cos.shape[-1]
        first, second = x[..., :dim:2], x[..., 1:dim:2]
        cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
        halves = first * cos - second * sin, second * cos + first * sin
        return torch.cat((*halves, x[..., dim:]), -1)

    return apply_rotary


@fault("miniformer.model.position:_ApplyRotary.backward")
def rotation_turns_its_gradient_forward(original):
    """The gradient of a rotation is rotated the same way again."""

    def backward(ctx, grad):
        from miniformer.model.position import _rotate_half_pairs

        cos, sin = ctx.saved_tensors
        return _rotate_half_pairs(grad, cos, sin), None, None

    return backward


@fault("miniformer.model.position:RotaryPosition.rotation")
def local_layers_rotate_with_the_global_base(original):
    """Layers with a window rotate as those without."""

    def rotation(self, positions, *, length, local=False):
        return original(self, positions, length=length)

    return rotation


@fault("miniformer.model.position:alibi_slopes")
def alibi_slopes_start_at_one(original):
    """ALiBi's slopes begin with 1 instead of the ratio of the series."""
    return lambda n_heads: [1.0, *original(n_heads)[:-1]]


@fault("miniformer.model.position:RelativePosition._bucket")
def relative_buckets_ignore_direction(original):
    """T5's buckets do not distinguish before and after."""
    return lambda self, relative_position: original(self, -relative_position.abs())


# Attention.


@fault("miniformer.model.attention_backends.functions:_zero_fully_masked")
def row_that_sees_nothing_gives_a_mean(original):
    """A fully masked query gets the mean of all values instead of zeros."""
    return lambda out, mask: out


@fault("miniformer.model.attention_backends.functions:plain")
def shared_heads_are_interleaved(original):
    """Query heads share interleaved key-value heads instead of groups."""

    def plain(q, k, v, mask, scores):
        group = q.shape[1] // k.shape[1]
        return original(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1), mask, scores)

    return plain


@fault("miniformer.model.attention_backends.functions:plain")
def position_bias_comes_after_the_softcap(original):
    """The bias of positions is not soft-capped with the scores."""

    def plain(q, k, v, mask, scores):
        import torch

        if scores.softcap is None or scores.bias is None:
            return original(q, k, v, mask, scores)
        scale = q.shape[-1] ** -0.5 if scores.scale is None else scores.scale
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        products = q @ keys.transpose(-1, -2) * scale
        capped = scores.softcap * torch.tanh(products / scores.softcap) + scores.bias
        bias = capped - products
        return original(q, k, v, mask, scores._replace(softcap=None, bias=bias))

    return plain


@fault("miniformer.model.attention_backends.functions:pack")
def varlen_joins_rows(original):
    """Packed rows are one sequence."""

    def pack(visibility, batch_size):
        layout, visibility = original(visibility, batch_size)
        cu_seqlens = layout.cu_seqlens[[0, -1]]
        max_seqlen = int(cu_seqlens.diff().max())
        return layout._replace(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen), visibility

    return pack


@fault("miniformer.model.attention_backends.matmul:_MatmulAttention.backward")
def attention_keeps_no_gradient_of_its_softmax(original):
    """Gradients of scores are those of weights: the sum over a row is not subtracted."""

    def backward(ctx, grad):
        import torch

        softmax_backward = torch._softmax_backward_data
        torch._softmax_backward_data = lambda grad, weights, dim, dtype: grad * weights
        try:
            return original(ctx, grad)
        finally:
            torch._softmax_backward_data = softmax_backward

    return backward


@fault("miniformer.model.attention_backends:unsupported_reason")
def gpu_is_asked_for_wide_heads(original):
    """FlashAttention is selected for unsupported head widths."""

    def unsupported_reason(backend, requirements):
        head_dim = min(requirements.head_dim, 64)
        return original(backend, requirements._replace(head_dim=head_dim))

    return unsupported_reason


@fault("miniformer.model.attention:MultiHeadAttention.attend")
def sinks_are_dropped(original):
    """Attention sinks are ignored."""

    def attend(self, *args, **kwargs):
        sinks, self.sinks = self.sinks, None
        try:
            return original(self, *args, **kwargs)
        finally:
            self.sinks = sinks

    return attend


# Layers and heads.


@fault("miniformer.model.layers:EncoderLayer.sublayer_output")
def output_norm_is_left_out(original):
    """A branch's output is not normalized."""

    def change(self, x, name, sublayer):
        placement = self.placement
        self.placement = {"both": "pre", "output": "post"}.get(placement, placement)
        try:
            return original(self, x, name, sublayer)
        finally:
            self.placement = placement

    return change


@fault("miniformer.model.layers:EncoderLayer.forward")
def parallel_feed_forward_reads_attention(original):
    """A parallel layer runs its branches one after the other."""

    def forward(self, x, context, *, cache=None, layer=0):
        parallel, self.parallel = self.parallel, False
        try:
            return original(self, x, context, cache=cache, layer=layer)
        finally:
            self.parallel = parallel

    return forward


@fault("miniformer.model.feed_forward:FeedForward.forward")
def gate_and_value_are_swapped(original):
    """The activation is that of the value, not of the gate."""

    def forward(self, x):
        gate, up = self.gate_proj, self.up_proj
        if gate is None:
            return original(self, x)
        return self.down_proj(gate(x) * self.activation(up(x)))

    return forward


@fault("miniformer.model.norm:RMSNorm.forward")
def rms_norm_subtracts_the_mean(original):
    """RMSNorm normalizes the distance from the mean."""
    return lambda self, x: original(self, x - x.mean(-1, keepdim=True))


@fault("miniformer.model.norm:_FusedRMSNorm.backward")
def rms_norm_has_the_gradient_of_layer_norm(original):
    """The gradient by the inputs has no component along them."""

    def backward(ctx, grad):
        dx, dw, _ = original(ctx, grad)
        return dx if dx is None else dx - dx.mean(-1, keepdim=True), dw, None

    return backward


@fault("miniformer.model.head:pool_sequences")
def mean_of_a_sequence_counts_padding(original):
    """The mean of a sequence is divided by the length of its row."""

    def pool_sequences(features, attention_mask, pooling):
        if attention_mask is not None and "mean" in pooling:
            features, attention_mask = features * attention_mask[..., None], None
        return original(features, attention_mask, pooling)

    return pool_sequences


@fault("miniformer.model.head:Head.transform")
def logit_scale_is_dropped(original):
    """Features reach the head unscaled."""

    def transform(self, features):
        scale, self.scale = self.scale, None
        try:
            return original(self, features)
        finally:
            self.scale = scale

    return transform


@fault("miniformer.model.head:Head.forward")
def tied_head_is_a_copy(original):
    """A tied head is a copy of the initial embedding."""

    def forward(self, features, embedding):
        if not hasattr(self, "_copy"):
            object.__setattr__(self, "_copy", embedding.detach().clone())
        return original(self, features, self._copy)

    return forward


@fault("miniformer.model.ops.cross_entropy:linear_cross_entropy")
def smoothing_does_not_reach_the_gradient(original):
    """The loss is smoothed, its gradient is that of plain cross-entropy."""

    def linear_cross_entropy(*args, label_smoothing=0.0, **kwargs):
        plain = original(*args, **kwargs)
        smooth = original(*args, label_smoothing=label_smoothing, **kwargs)
        return plain + (smooth - plain).detach()

    return linear_cross_entropy


@fault("miniformer.model.ops.cross_entropy:linear_cross_entropy")
def ignored_labels_are_predicted(original):
    """A label of -100 counts as label 0."""

    def linear_cross_entropy(features, weight, labels, **kwargs):
        return original(features, weight, labels.clamp_min(0), **kwargs)

    return linear_cross_entropy


@fault("miniformer.model.ops.activation_checkpointing:checkpoint_layer")
def recomputed_layers_draw_other_dropout(original):
    """A recomputed layer draws new dropout."""

    def checkpoint_layer(mode, layer, *args, **kwargs):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return checkpoint_layer


@fault("miniformer.model.initialization:initialize")
def writers_to_the_residual_stream_start_large(original):
    """Initial weights do not depend on depth."""

    def initialize(model):
        import torch

        original(model)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):
                torch.nn.init.normal_(parameter, std=1.0)

    return initialize


@fault("miniformer.model.ops.linear:matmul_dtype")
def autocast_reaches_float64(original):
    """Products of float64 are cast by autocast, too."""

    def matmul_dtype(x):
        import torch

        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return x.dtype

    return matmul_dtype


@fault("miniformer.model.stack:Stack._needs_grad")
def frozen_inputs_mean_no_gradients(original):
    """Only the inputs decide that gradients are needed, not the weights."""

    def _needs_grad(self, *inputs):
        import torch

        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)

    return _needs_grad


@fault("miniformer.model.embedding:check_length")
def max_seq_len_counts_columns(original):
    """Padding within the cache counts as tokens."""

    def check_length(x, config, cache):
        return original(x, config, cache and _Columns(cache))

    return check_length


class _Columns:
    """A cache whose rows have as many tokens as columns."""

    def __init__(self, cache):
        self.length = cache.length
        self.lengths = cache.lengths * 0 + cache.length


@fault("miniformer.model.embedding:check_segments")
def any_number_names_a_segment(original):
    """Segment ids below 0 are accepted."""

    def check_segments(segment_ids, x, cache):
        import torch

        if segment_ids is not None and segment_ids.dtype == torch.long:
            segment_ids = segment_ids.abs()
        return original(segment_ids, x, cache)

    return check_segments


@fault("miniformer.model.transformer:Transformer.embed")
def vectors_of_sequences_ignore_token_types(original):
    """Pooled vectors are those of token type 0."""

    def embed(self, inputs=None, attention_mask=None, *, token_types=None, **options):
        return original(self, inputs, attention_mask, **options)

    return embed


@fault("miniformer.model.seq2seq:Seq2SeqTransformer.features")
def targets_are_embedded_as_sources(original):
    """Targets use the embedding of sources."""

    def features(self, target, memory, target_mask=None, *, target_embeds=None, **options):
        own = self.source_embedding
        if own is not None and target is not None and int(target.max()) < len(own.weight):
            target, target_embeds = None, own(target)
        return original(self, target, memory, target_mask, target_embeds=target_embeds, **options)

    return features


# The cache.


@fault("miniformer.model.cache.kv_cache:KVCache.extend")
def positions_restart_in_the_cache(original):
    """Positions of new tokens begin at 0."""

    def extend(self, attention_mask, num_new):
        positions = original(self, attention_mask, num_new)
        return positions - positions.amin(1, keepdim=True)

    return extend


@fault("miniformer.model.cache.kv_cache:KVCache.length")
def failed_pass_stays_in_the_cache(original):
    """Columns of a failed pass count as tokens."""
    return property(lambda self: self.stop)


@fault("miniformer.model.cache.kv_cache:KVCache.trim")
def trimmed_tokens_stay_visible(original):
    """Trimming rows to different lengths retains all tokens."""

    def trim(self, lengths):
        if not isinstance(lengths, int):
            self.make_positions()
        positions = None if self.positions is None else self.positions.clone()
        original(self, lengths)
        if positions is not None:
            self.positions.copy_(positions)

    return trim


@fault("miniformer.model.cache.kv_cache:KVCache._truncate")
def emptied_cache_keeps_its_source(original):
    """A cache trimmed to nothing retains its source."""

    def _truncate(self, columns):
        self.stop = columns

    return _truncate


@fault("miniformer.model.cache.source:SourceCache.source_kv")
def source_is_projected_in_every_pass(original):
    """The cache does not store keys and values of the source."""

    def source_kv(self, layer, memory, project):
        self.cross_kv = None if layer == 0 else self.cross_kv
        return original(self, layer, memory, project)

    return source_kv


@fault("miniformer.model.stack:Stack._source_contexts")
def source_is_projected_outside_of_layers(original):
    """Keys and values of the source are computed before the layers are called."""

    def _source_contexts(self, x, memory, recorder):
        for layer in self.layers:
            layer.cross_attention.keys_values(memory.features)
        return original(self, x, memory, recorder)

    return _source_contexts


@fault("miniformer.model.cache.kv_cache:KVCache._reindex_rows")
def beams_keep_their_source(original):
    """Reordered rows keep their former sources."""
    return lambda self, rows, sources: original(self, rows, None)


@fault("miniformer.model.cache.kv_cache:KVCache.reorder")
def spans_stay_where_they_were(original):
    """Reordered rows keep their former final lengths."""

    def reorder(self, rows, *, same_source=False):
        final_lengths = self.final_lengths.clone()
        original(self, rows, same_source=same_source)
        self.final_lengths.copy_(final_lengths)

    return reorder


@fault("miniformer.model.cache.kv_cache:KVCache.insert")
def inserted_row_sees_its_predecessor(original):
    """Tokens of the row that an inserted one replaces stay visible."""

    def insert(self, rows, cache):
        before = self.make_positions()[rows].clone()
        original(self, rows, cache)
        columns = self.positions[rows]
        self.positions[rows] = columns.where(columns >= 0, before)

    return insert


@fault("miniformer.model.cache.storage:Columns.insert")
def insertion_forgets_a_ring(original):
    """An inserted row has no earlier tokens in layers with a sliding window."""

    def insert(self, rows, storage, length):
        original(self, rows, storage, length)
        if hasattr(self, "window"):
            self.keys[rows] = 0

    return insert


@fault("miniformer.model.cache.kv_cache:KVCache.insert")
def inserted_row_takes_the_length_of_its_predecessor(original):
    """Inserted rows have the final lengths of the rows that they replace."""

    def insert(self, rows, cache):
        final_lengths = self.final_lengths.clone()
        original(self, rows, cache)
        self.final_lengths.copy_(final_lengths)

    return insert


@fault("miniformer.model.cache.storage:Columns.compact")
def compaction_leaves_keys_behind(original):
    """Compaction moves positions without their keys and values."""
    return lambda self, columns: None


@fault("miniformer.model.masks:make_cached_positions")
def exported_positions_count_padding(original):
    """Positions of an exported decoder are columns."""

    def make_cached_positions(mask):
        import torch

        positions = original(mask)
        return torch.arange(mask.shape[1]).expand_as(positions).where(mask, -1)

    return make_cached_positions


@fault("miniformer.model.stack:_extend_cache")
def exported_model_has_one_batch_size(original):
    """The batch of an exported model is that of its example."""

    def _extend_cache(cache, x, attention_mask, is_continued):
        return original(cache, x[: len(x)], attention_mask, is_continued)

    return _extend_cache


@fault("miniformer.model.cache.static_view:TensorCache.source_kv")
def exported_layers_share_the_first_source(original):
    """All layers of an exported decoder attend to the keys of the first layer's source."""
    return lambda self, layer, memory, project: original(self, 0, memory, project)


@fault("miniformer.model.attention:CrossAttention.forward")
def rows_read_the_source_of_a_neighbor(original):
    """Rows that share a source read those of the others in turn."""

    def forward(self, x, context, *, memory, cache=None, layer=0):
        if len(memory) == len(x):
            return original(self, x, context, memory=memory, cache=cache, layer=layer)
        turned = x.view(-1, len(memory), *x.shape[1:]).transpose(0, 1).reshape_as(x)
        return original(self, turned, context, memory=memory, cache=cache, layer=layer)

    return forward


@fault("miniformer.model.cache.source:SourceCache.source_kv")
def grown_source_is_not_seen(original):
    """The cache keeps the source of the first pass."""

    def source_kv(self, layer, memory, project):
        if self.cross_kv and layer < len(self.cross_kv):
            memory = memory[:, : self.cross_kv[layer][0].shape[2]]
        return original(self, layer, memory, project)

    return source_kv


@fault("miniformer.model.cache.kv_cache:_state_key")
def state_of_columns_passes_for_a_ring(original):
    """The state of a cache does not name its storage."""
    return lambda index, layer, name: f"{index}.{name}"


@fault("miniformer.model.cache.storage:Ring._write_slots")
def ring_forgets_within_the_window(original):
    """A first pass that is longer than the window leaves out its oldest token."""

    def write(self, cache, keys, values):
        original(self, cache, keys, values)
        if keys.shape[2] >= self.window > 1:
            oldest = (cache.stop + 1) % self.window
            self.keys[:, :, oldest] = 0

    return write


@fault("miniformer.model.cache.storage:Int8Columns.append")
def int8_cache_keeps_four_bits(original):
    """Cached values are rounded to 15 steps instead of 255."""

    def append(self, cache, keys, values):
        def coarse(x):
            scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 7
            return (x / scale).round() * scale

        return original(self, cache, coarse(keys), coarse(values))

    return append


@fault("miniformer.model.cache.storage:Columns.reorder")
def keys_stay_where_they_were(original):
    """Reordering does not move keys and values."""
    return lambda self, rows, length: None


@fault("miniformer.model.cache.storage:Columns.select")
def remaining_rows_take_keys_of_the_first(original):
    """Selected rows get the keys of the first rows."""

    def select(self, rows, length):
        import torch

        original(self, torch.arange(len(rows)) % len(self.keys), length)

    return select


# Files.


@fault("miniformer.model.pretrained:PretrainedMixin.from_pretrained")
def loaded_model_is_float32(original):
    """A model is loaded in float32 for any type of its file."""

    def from_pretrained(cls, directory, *, revision=None):
        return original(cls, directory, revision=revision).float()

    return from_pretrained


@fault("miniformer.model.pretrained:refuse_shared_tensors")
def shared_tensors_are_saved_apart(original):
    """Shared weights are saved twice."""
    return lambda weights: None


@fault("miniformer.model.hub:_existing_or_backup")
def replaced_model_is_lost(original):
    """The backup of a directory is not found after a kill."""
    return lambda directory: directory


@fault("miniformer.model.execution_settings:set_attention_backend")
def backend_of_a_layer_is_that_of_all(original):
    """The backend of some layers is set for all."""
    return lambda model, backend, layers=None: original(model, backend)


@fault("miniformer.model.memory:Memory.split")
def split_sources_keep_their_padding(original):
    """Sources that are taken apart have their padding."""
    return lambda self: [type(self)(row[None]) for row in self.features]


# Memory.


@fault("miniformer.model.ops.allocation_tracker:AllocationTracker.live_bytes")
def freed_tensors_still_count(original):
    """Freed tensors count as live."""
    return lambda self: self._total_bytes


# Decoding steps recorded and in C++.


@fault("miniformer.runtime.cuda_graphs:_StaticCacheView.extend")
def recorded_step_counts_its_own_column(original):
    """A captured step counts the token of its capture."""

    def extend(self, attention_mask, num_new):
        positions = self.cache.positions
        placed = (positions >= 0).sum(1, keepdim=True)
        positions.index_copy_(1, self.column, placed)
        return placed

    return extend


@fault("miniformer.runtime.native.weight_layout:_round_int4")
def four_bits_have_no_minus_eight(original):
    """int4 weights are clamped to -7."""
    return lambda groups, scales: original(groups, scales).clamp_min(-7)


@fault("miniformer.runtime.native.weight_layout:pad_rows")
def last_panel_repeats_a_row(original):
    """Padding of the last panel is not zero."""

    def pad_rows(rows, multiple):
        import torch

        more = -len(rows) % multiple
        return torch.cat([rows[:1].expand(more, *rows.shape[1:]), rows]) if more else rows

    return pad_rows


@fault("miniformer.runtime.native.huge_pages:HugePageArena.copy_tensor")
def weights_overlap_in_memory(original):
    """All tensors of a chunk start at its first byte."""

    def copy_tensor(self, tensor):
        self._used = 0
        return original(self, tensor)

    return copy_tensor


@fault("miniformer.runtime.native.ctypes_structs:declare_signatures")
def library_of_other_structures_is_taken(original):
    """Sizes of structures in C++ and Python are not compared."""

    def declare_signatures(library):
        import contextlib

        with contextlib.suppress(AssertionError):
            original(library)

    return declare_signatures


@fault("miniformer.runtime.native.weights:GROUP_SIZE")
def matrices_of_any_width_are_rounded(original):
    """A matrix of half the columns of a group is rounded to integers."""
    return original // 2


@fault("miniformer.runtime.native.weights:NativeWeights._attention")
def kernels_see_the_whole_text(original):
    """The kernels get no sliding window."""

    def attention(self, attention, projections):
        struct = original(self, attention, projections)
        struct.window = 0
        return struct

    return attention


@fault("miniformer.runtime.native.weights:unsupported_component")
def hooks_are_passed_over(original):
    """The kernels run models with hooks, and ignore the hooks."""

    def unsupported_component(model):
        reason = original(model)
        return None if reason == "it has hooks" else reason

    return unsupported_component


@fault("miniformer.runtime.native.decode_step:NativeRuntime.materialize_cache")
def rows_settle_without_their_keys(original):
    """Keys and values of reordered rows are not moved in the cache."""

    def materialize_cache(self):
        self._key_rows = None

    return materialize_cache


@fault("miniformer.runtime.native.decode_step:NativeRuntime.prefill")
def kernels_read_padding(original):
    """The kernels read padding as tokens."""
    return lambda self, ids, mask, *args, **options: original(self, ids, None, *args, **options)


@fault("miniformer.runtime.native.decode_step:NativeRuntime.prefill")
def shared_sources_are_lost_in_prefill(original):
    """Each row of a new cache reads the source with its own index, not that of its prompt."""

    def prefill(self, *args, **options):
        import torch

        if self.rows_per_source > 1:
            copies, self.rows_per_source = self.rows_per_source, 1
            sources = len(args[0]) // copies
            self.select_sources(torch.arange(len(args[0])) % sources)
        return original(self, *args, **options)

    return prefill


@fault("miniformer.runtime.native.engine:weight_version")
def engine_keeps_weights_that_have_changed(original):
    """In-place changes of weights are not detected."""
    return lambda parameter: (parameter.data_ptr(), 0)


@fault("miniformer.runtime.native.threads:single_openmp_thread")
def torch_threads_run_beside_the_kernels(original):
    """PyTorch keeps its threads during decoding."""

    def single_openmp_thread():
        import contextlib

        return contextlib.nullcontext()

    return single_openmp_thread


@fault("miniformer.runtime.native.thread_tuning:ThreadTuner.record_time")
def more_threads_pass_for_faster(original):
    """Times of steps are not compared."""
    return lambda self, rows, seconds: original(self, rows, 1.0)


@fault("miniformer.runtime.native.build:_cache_key")
def kernels_of_another_processor_are_taken(original):
    """The name of a cached library depends on the source only."""

    def key(compiler):
        import hashlib

        from miniformer.runtime.native import build

        source = b"".join(path.read_bytes() for path in (build._SOURCE, *build._HEADERS))
        return f"any-{hashlib.sha256(source).hexdigest()[:16]}"

    return key


@fault("miniformer.model.rotary_scaling:_yarn_inv_freq")
def yarn_has_no_ramp(original):
    """YaRN divides every slow pair by the full factor, without a ramp."""

    def _yarn_inv_freq(inv_freq, scaling, *, base, dim):
        import torch

        scaled = original(inv_freq, scaling, base=base, dim=dim)
        return torch.where(scaled == inv_freq, inv_freq, inv_freq / scaling["factor"])

    return _yarn_inv_freq


@fault("miniformer.model.cache.storage:Ring.__init__")
def ring_is_one_token_short(original):
    """A ring stores one token fewer than its window."""

    def init(self, shape, device, dtype, window):
        original(self, shape, device, dtype, max(1, window - 1))

    return init


@fault("miniformer.model.attention_backends.matmul:_scaled_bmm")
def bfloat16_attention_rounds_its_scale(original):
    """In bfloat16 the scale of scores is rounded to a power of two."""

    def _scaled_bmm(a, b, scale, bias=None):
        import math

        import torch

        if a.dtype == torch.bfloat16:
            scale = 2.0 ** round(math.log2(scale))
        return original(a, b, scale, bias)

    return _scaled_bmm


@fault("miniformer.runtime.native.weight_layout:_round_int4")
def four_bits_are_cut_off(original):
    """int4 weights are truncated toward zero, not rounded."""

    def fours(groups, scales):
        return (groups / scales).nan_to_num().trunc().clamp(-8, 7)

    return fours


@fault("miniformer.runtime.cuda_graphs:make_cuda_graph_runtime")
def cuda_graphs_ignore_weight_dtype(original):
    """A dtype of weights has no effect with CUDA graphs, and no error says so."""

    def make_cuda_graph_runtime(model, memory, options):
        import dataclasses

        return original(model, memory, dataclasses.replace(options, weight_dtype="float32"))

    return make_cuda_graph_runtime


@fault("miniformer.runtime.cuda_graphs:CudaGraphRuntime.step")
def recorded_logits_share_memory(original):
    """Logits of a captured step share memory with the next step."""

    def step(self, tokens):
        logits = original(self, tokens)
        if self._replay is None:
            return logits
        self._last = self.__dict__.get("_last", logits)
        return self._last.copy_(logits)

    return step


@fault("miniformer.runtime.native.build:_compiler_flags")
def kernels_are_always_native(original):
    """The kernels are always compiled for this processor."""

    def flags():
        return (*(flag for flag in original() if "-march" not in flag), "-march=native")

    return flags


@fault("miniformer.model.hub:_is_path")
def mistyped_path_is_sent_to_hub(original):
    """A mistyped path of the form user/name is looked up on the hub."""

    def _is_path(name_or_path):
        from pathlib import Path

        return name_or_path.count("/") != 1 or Path(name_or_path).exists()

    return _is_path


@fault("miniformer.model.hub:suggest_model_directory")
def no_hint_of_nearest_model(original):
    """The message for a wrong directory has no suggestion."""
    return lambda path: ""


@fault("miniformer.model.pretrained:upload_directory")
def private_models_are_public(original):
    """`push_to_hub(private=True)` of a model alone makes a public repository."""
    return lambda directory, repo_id, *, private=False, message=None: original(
        directory, repo_id, message=message
    )


# Wide head.


@fault("miniformer.model.wide_head.ngrams:scramble")
def ngrams_do_not_tell_lengths_apart(original):
    """The hash of an n-gram is the sum of its tokens."""
    return lambda values: values


@fault("miniformer.model.wide_head.ngrams:ngram_keys")
def padding_is_part_of_ngrams(original):
    """Padding gives n-grams, too."""

    def ngram_keys(inputs, **options):
        return original({**inputs, "attention_mask": None}, **options)

    return ngram_keys


@fault("miniformer.model.wide_head.ngrams:ngram_keys")
def ngrams_ignore_token_types(original):
    """Tokens of both texts of a pair give the same n-grams."""

    def ngram_keys(inputs, **options):
        return original({**inputs, "token_types": None}, **options)

    return ngram_keys


@fault("miniformer.model.wide_head.ngrams:NgramFeatures.forward")
def wide_features_have_no_unit_norm(original):
    """The values of an example grow with its length."""

    from miniformer.model.wide_head.sparse import SparseFeatures

    def forward(self, inputs):
        index, values = original(self, inputs)
        return SparseFeatures(index, self.idf[index] * (values > 0))

    return forward


@fault("miniformer.model.wide_head.ngrams:NgramFeatures.forward")
def unknown_ngrams_are_known(original):
    """An unknown n-gram is taken for the next known one."""

    from miniformer.model.wide_head.sparse import SparseFeatures

    def forward(self, inputs):
        index, _ = original(self, inputs)
        values = self.idf[index]
        return SparseFeatures(index, values / values.square().sum(-1, keepdim=True).sqrt())

    return forward


@fault("miniformer.model.transformer:Transformer.classify")
def the_wide_head_is_added_in_training(original):
    """The Transformer's loss depends on the wide head."""

    def classify(self, inputs, attention_mask=None, *, token_types=None):
        training, self.training = self.training, False
        try:
            return original(self, inputs, attention_mask, token_types=token_types)
        finally:
            self.training = training

    return classify


@fault("miniformer.model.wide_head.series:masked_vectors")
def padding_is_a_number(original):
    """Vectors of padding count as those of the series."""

    def masked_vectors(inputs):
        return original({**inputs, "attention_mask": None})

    return masked_vectors


@fault("miniformer.model.wide_head.series:DenseFeatures.standardize")
def constant_features_are_scaled_up(original):
    """A feature that is constant in the training data is divided by almost nothing."""

    def standardize(self, values):
        original(self, values)
        self.scales.masked_fill_(self.scales == 0, 1e6)
        self.means.add_(1e-3)

    return standardize


@fault("miniformer.model.wide_head.kernels:KernelFeatures.convolve")
def dilations_are_ignored(original):
    """All kernels have the dilation 1."""
    return lambda self, inputs, level: original(self, inputs, 0)


@fault("miniformer.model.wide_head.rbf:RbfFeatures.forward")
def landmarks_have_no_norm(original):
    """Distances leave out the squares of the landmarks."""
    import torch

    def forward(self, inputs):
        x, z = self._dense(self.inner(inputs)), self.landmarks
        return torch.exp(-self.scale * (x.square().sum(1, keepdim=True) - 2 * x @ z).clamp_min(0))

    return forward


@fault("miniformer.model.wide_head.rbf:RbfFeatures._dense")
def repeated_columns_count_once(original):
    """Of a column that occurs several times, one value stays."""

    def _dense(self, features):
        if not isinstance(features, tuple):
            return features.float()
        empty = features.values.new_zeros(features.values.shape[0], self.inner.size)
        return empty.scatter_reduce(1, features.columns, features.values, "amax")

    return _dense


@fault("miniformer.model.wide_head.ngrams:second_text_keys")
def second_texts_have_the_first_text(original):
    """Tokens of both texts are features."""
    import torch

    def second_text_keys(inputs):
        return original({**inputs, "token_types": torch.ones_like(inputs["token_types"])})

    return second_text_keys


@fault("miniformer.model.wide_head.ngrams:second_text_keys")
def second_texts_lack_marks(original):
    """Token types are read for the text alone."""

    def second_text_keys(inputs):
        return original({**inputs, "token_types": inputs["token_types"] % 2})

    return second_text_keys


@fault("miniformer.model.wide_head.head:WideHead.linear")
def groups_share_their_first_weights(original):
    """Every group has the weights from the first row on."""

    def linear(self, inputs):
        outputs = self.bias
        for group in self.groups:
            outputs = outputs + group(inputs) @ self.weight[: group.size]
        return outputs

    return linear


@fault("miniformer.model.wide_head.sparse:linear_outputs")
def sparse_features_have_the_value_one(original):
    """The values of sparse features are not used."""

    def linear_outputs(features, weight):
        if isinstance(features, tuple):
            features = features._replace(values=(features.values != 0).float())
        return original(features, weight)

    return linear_outputs


# Products.


@fault("miniformer.model.ops.products:_product")
def product_without_its_bias(original):
    """A product of oneDNN leaves out the bias."""
    return lambda x, weight, bias: original(x, weight, None)


@fault("miniformer.model.ops.products:_takes_onednn")
def products_of_any_type_are_taken(original):
    """Small, mixed and double products go to oneDNN, too."""
    return lambda x, weight, min_work: True


@fault("miniformer.model.ops.products:_cpu_maker")
def every_cpu_is_of_one_maker(original):
    """The maker of a processor is not read."""
    return lambda path=None: "GenuineIntel"


@fault("miniformer.model.ops.products:_is_right")
def every_operator_is_right(original):
    """The operator of another version of torch is not checked."""
    return lambda: True
