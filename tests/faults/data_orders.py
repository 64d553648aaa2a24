"""Faults in orders of batches, mixtures and packing of whole examples."""

from tests.faults import fault


@fault("miniformer.data.batching.order:OrderedBatchLoader.load_state_dict")
def state_of_an_order_is_lost(original):
    """A resumed order begins with its first state."""

    def load_state_dict(self, state):
        original(self, {name: x for name, x in state.items() if name != "order"})
        self._state = state

    return load_state_dict


@fault("miniformer.data.batching.order:OrderedBatchLoader._plan")
def order_resumes_from_the_state_after_its_plan(original):
    """The position of a batch has the state after the plan of its chunk."""

    def plan(self, chunk, epoch, chunk_index):
        plans = original(self, chunk, epoch, chunk_index)
        self._planned_from = self._order_state()
        return plans

    return plan


@fault("miniformer.data.batching.loader:BatchLoader._batch_of_rank")
def ranks_of_an_order_get_the_same_batches(original):
    """Each rank gets the first batch of a turn."""
    return lambda self, rank_batches: original(self, [rank_batches[0]] * len(rank_batches))


@fault("miniformer.data.batching.order:OrderedBatchLoader._plan")
def batch_without_rows_is_counted(original):
    """The row in place of none counts."""

    def plan(self, chunk, epoch, chunk_index):
        plans = original(self, chunk, epoch, chunk_index)
        self._empty = set()
        return plans

    return plan


@fault("miniformer.data.reading.mixture:MixtureShares.draws_per_epoch")
def weights_of_sources_are_ignored(original):
    """Each source is drawn as often as it has records."""

    def draws_per_epoch(self):
        import numpy as np

        return np.bincount(self.source_of, minlength=len(self.weights))

    return draws_per_epoch


@fault("miniformer.data.reading.mixture:MixtureShares.draw")
def mixture_repeats_records_before_all_are_drawn(original):
    """Each epoch draws the first records of the order again."""
    return lambda self, seed, epoch: original(self, seed, 0)


@fault("miniformer.data.batching.columnar:ColumnarStore.take")
def drawn_examples_are_the_first_ones(original):
    """Drawn examples are those at the beginning."""

    def take(self, indices):
        import numpy as np

        return original(self, np.arange(len(indices)) % len(self))

    return take


@fault("miniformer.training.resume.config:dataset_fingerprint")
def changed_weights_are_not_noticed(original):
    """The facts of a mixture do not have its weights."""

    def dataset_fingerprint(records):
        return {name: x for name, x in original(records).items() if name != "mixture"}

    return dataset_fingerprint


@fault("miniformer.data.batching.packing:PackedBatcher.collate")
def packing_loses_the_mask(original):
    """Packed windows predict all tokens."""

    def collate(self, chunk, starts, rng=None):
        from miniformer.data.batching.columnar import ColumnarStore

        columns = {name: x for name, x in chunk.columns.items() if name != "learn"}
        return original(self, ColumnarStore(columns, chunk.offsets), starts, rng)

    return collate


@fault("miniformer.data.batching.example_packing:ExamplePackingBatcher.collate")
def whole_packing_loses_the_mask(original):
    """Windows of whole examples predict all tokens."""

    def collate(self, chunk, windows, rng=None):
        from miniformer.data.batching.columnar import ColumnarStore

        columns = {name: x for name, x in chunk.columns.items() if name != "learn"}
        return original(self, ColumnarStore(columns, chunk.offsets), windows, rng)

    return collate


@fault("miniformer.data.batching.example_packing:ExamplePackingBatcher.collate")
def segments_of_whole_examples_are_one(original):
    """Examples of a window attend to each other."""

    def collate(self, chunk, windows, rng=None):
        batch = original(self, chunk, windows, rng)
        if "segment_ids" in batch:
            batch["segment_ids"] = (batch["segment_ids"] != 0).long()
        return batch

    return collate


@fault("miniformer.data.batching.example_packing:ExamplePackingBatcher._spans")
def examples_are_split(original):
    """Examples are split in halves."""

    def spans(self, chunk):
        import numpy as np

        first = original(self, chunk)
        half = first[:, 1] // 2
        parts = [np.stack([first[:, 0], half], 1)]
        parts.append(np.stack([first[:, 0] + half, first[:, 1] - half], 1))
        result = np.concatenate(parts)
        return result[result[:, 1] > 0]

    return spans


@fault("miniformer.tasks.common.text_parts:encode_parts")
def mask_is_one_token_late(original):
    """The mask belongs to tokens, not to those that follow them."""

    def encode_parts(records, tokenizer, *, prefix, suffix, running_text):
        import numpy as np

        examples = original(
            records, tokenizer, prefix=prefix, suffix=suffix, running_text=running_text
        )
        for example in examples:
            example["learn"] = np.roll(example["learn"], 1)
        return examples

    return encode_parts


@fault("miniformer.data.batching.record_fields:FieldBatcher.collate")
def fields_of_records_are_those_of_the_first(original):
    """All records of a batch have the fields of the first one."""

    def collate(self, chunk, plan, rng=None):
        batch = original(self, chunk, plan, rng)
        for values in batch["fields"].values():
            first = next(iter(values.values()))
            values.update(dict.fromkeys(values, first))
        return batch

    return collate


@fault("miniformer.data.batching.mixture_chunks:MixtureChunks._draw")
def every_epoch_of_a_mixture_is_the_first(original):
    """The draws of all epochs are those of epoch 0."""
    return lambda self, epoch: original(self, 0)


@fault("miniformer.utils.sources:weight_problem")
def any_weight_of_a_source_is_valid(original):
    """A weight may be 0, or no number."""
    return lambda weight: None


@fault("miniformer.data.reading.parsing:_with_derived_field")
def sources_of_a_field_are_not_checked(original):
    """A wrong completion is reported as a part of a text."""

    def _with_derived_field(record, name, check):
        value = check.derive(record)
        return record if value is None else {**record, name: value}

    return _with_derived_field
