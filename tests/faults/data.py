"""Faults in `miniformer.data`."""

from tests.faults import fault

# Packing, padding and order.


@fault("miniformer.data.batching.packing:PackedBatcher.collate")
def labels_are_the_inputs(original):
    """Each token predicts itself."""

    def collate(self, chunk, starts, rng=None):
        batch = original(self, chunk, starts, rng)
        predicted = batch["labels"] != -100
        batch["labels"][predicted] = batch["input_ids"][predicted]
        return batch

    return collate


@fault("miniformer.data.batching.packing:PackedBatcher.collate")
def documents_of_a_window_are_one(original):
    """Windows have no document segments."""

    def collate(self, chunk, starts, rng=None):
        batch = original(self, chunk, starts, rng)
        if "segment_ids" in batch:
            batch["segment_ids"] = (batch["segment_ids"] != 0).long()
        return batch

    return collate


@fault("miniformer.data.batching.packing:PackedBatcher.num_windows")
def validation_leaves_out_the_last_window(original):
    """An incomplete last window is not validated."""
    return lambda self, chunk: max(1, len(chunk.columns["ids"]) // self.seq_len)


@fault("miniformer.data.batching.length_bucketing:LengthBucketBatcher.plan_batches")
def budget_of_a_batch_ignores_padding(original):
    """Batches are planned by tokens without padding."""

    def plan_batches(self, chunk, rng):
        import numpy as np

        lengths = self._lengths(chunk)
        tokens = self.batch_tokens or self.batch_size * self.row_tokens(chunk)
        order = self._sort_by_length(lengths, rng)
        number = lengths[order].sum(1).cumsum() // max(tokens, 1)
        return np.split(order, np.flatnonzero(np.diff(number)) + 1)

    return plan_batches


@fault("miniformer.data.batching.length_bucketing:LengthBucketBatcher.plan_batches")
def batch_that_is_just_full_is_cut_short(original):
    """A batch must be shorter than its token limit."""

    def plan_batches(self, chunk, rng):
        limit = self.batch_tokens
        self.batch_tokens = (limit or self.batch_size * self.row_tokens(chunk)) - 1
        try:
            return original(self, chunk, rng)
        finally:
            self.batch_tokens = limit

    return plan_batches


@fault("miniformer.data.batching.length_bucketing:pad_sequences")
def padding_has_no_mask(original):
    """Padded sequences have no mask."""
    return lambda sequences, padding_value=0: (original(sequences, padding_value)[0], None)


@fault("miniformer.data.batching.loader:BatchLoader._rng")
def every_epoch_has_the_same_order(original):
    """The epoch does not decide the order."""
    return lambda self, *position: original(self, 0, *position[1:])


@fault("miniformer.data.batching.loader:BatchLoader.load_state_dict")
def resumed_pass_begins_with_its_first_batch(original):
    """A resumed epoch starts with the first batch of the chunk."""
    return lambda self, state: original(self, {**state, "batch": 0})


@fault("miniformer.data.batching.loader:BatchLoader._batch_of_rank")
def all_ranks_get_the_same_batches(original):
    """Every rank gets the batch of rank 0."""

    def _batch_of_rank(self, rank_batches):
        rank, self.rank = self.rank, 0
        try:
            return original(self, rank_batches)
        finally:
            self.rank = rank

    return _batch_of_rank


@fault("miniformer.data.batching.loader:count_tokens")
def padding_counts_as_tokens(original):
    """Padding counts as tokens."""
    return lambda batch, declared=None: (original(batch, declared)[1],) * 2


@fault("miniformer.data.batching.chunks:RecordChunks._chunk_indices")
def large_files_are_read_in_order(original):
    """Data read on demand has the order of the file in each epoch."""
    return lambda self, rng, epoch: original(self, None, epoch)


@fault("miniformer.data.batching.chunks:RecordChunks.__getitem__")
def bad_record_of_a_worker_is_dropped(original):
    """A chunk with an invalid record is empty."""

    def getitem(self, indices):
        from miniformer.data.batching.columnar import ColumnarStore

        store = original(self, indices)
        return store if isinstance(store, ColumnarStore) else ColumnarStore({}, {})

    return getitem


@fault("miniformer.data.datamodule:MiniFormerDataModule.truncation_warning")
def cut_examples_are_not_reported(original):
    """Truncated examples cause no warning."""
    return lambda self, split: None


@fault("miniformer.data.batching.columnar:ColumnarStore.concatenate")
def joined_examples_lose_their_borders(original):
    """Examples of several stores are shifted by one position."""

    def concatenate(cls, stores):
        result = original(cls, stores)
        for offsets in result.offsets.values():
            offsets[1:-1] = (offsets[1:-1] + 1).clip(max=offsets[-1])
        return result

    return concatenate


# Files and records.


@fault("miniformer.data.reading.record_index:RecordIndex.line_number")
def line_numbers_skip_blank_lines(original):
    """Line numbers do not count blank lines."""
    return lambda self, row: row + 1


@fault("miniformer.data.reading.index:next_text_block_end")
def text_is_cut_within_lines(original):
    """Blocks of plain text have one size, wherever lines end."""

    def next_text_block_end(read, start, size):
        from miniformer.data.reading.index import TEXT_BLOCK_BYTES

        return min(start + TEXT_BLOCK_BYTES, size)

    return next_text_block_end


@fault("miniformer.data.reading.parsing:_field_names")
def repeated_names_are_not_noticed(original):
    """The last value of a duplicate field is used."""
    return lambda text: list(dict.fromkeys(original(text)))


@fault("miniformer.data.reading.parsing:RecordError.__reduce__")
def error_of_a_worker_loses_its_line(original):
    """A RecordError of another process names line 0."""
    return lambda self: (type(self), (self.path, 0, self.problem))


@fault("miniformer.data.reading.records:Records.read")
def records_come_in_the_order_of_the_file(original):
    """Records are returned in ascending order instead of the requested one."""
    return lambda self, indices: original(self, sorted(int(index) for index in indices))


@fault("miniformer.data.reading.streaming:_stream_lines")
def stream_numbers_records_instead_of_lines(original):
    """Line numbers of a stream do not count blank lines."""

    def stream_lines(stream, name, checks, mapper):
        records = original(stream, name, checks, mapper)
        for number, (_, record) in enumerate(records, 1):
            yield f"{name}:{number}", record

    return stream_lines


@fault("miniformer.data.reading.streaming:_stream_text_blocks")
def stream_names_the_line_that_a_piece_begins_with(original):
    """An error in streamed plain text names the first line of its block."""

    def stream_text_blocks(stream, name, checks):
        from miniformer.data.reading.parsing import RecordError

        line = 1
        try:
            for location, record in original(stream, name, checks):
                yield location, record
                line += record["text"].count("\n")
        except RecordError as error:
            raise RecordError(error.path, line, error.problem) from None

    return stream_text_blocks


@fault("miniformer.data.reading.decompression:_DecompressedStream._decompress_next")
def cut_off_file_passes_for_whole(original):
    """A truncated compressed file is not an error."""

    def _decompress_next(self):
        from miniformer.config import UserError

        try:
            return original(self)
        except UserError as error:
            if "cut off" in str(error):
                return False
            raise

    return _decompress_next


@fault("miniformer.data.reading.files:RandomAccessFile.check_unchanged")
def changed_file_is_read_on(original):
    """A file that changes during use is not detected."""
    return lambda self: None


@fault("miniformer.data.reading.schema:features_to_array")
def keys_of_objects_have_no_order(original):
    """Features of objects have the order of the record's keys."""

    def features_to_array(value, dtype=None):
        import numpy as np

        dtype = np.float32 if dtype is None else dtype
        if isinstance(value[0], dict):
            value = [list(item.values()) for item in value]
        return original(value, dtype)

    return features_to_array


@fault("miniformer.data.inspect:find_duplicates")
def duplicates_within_a_split_are_missed(original):
    """Duplicates within a split are not counted."""
    return lambda reference, split: (0, []) if reference is split else original(reference, split)


@fault("miniformer.data.inspect:conflicting_labels_warning")
def conflicting_labels_are_not_found(original):
    """Equal inputs may have different labels."""
    return lambda split: None


@fault("miniformer.data.inspect:_named_values")
def data_check_mixes_the_outputs_of_a_regression(original):
    """All outputs have the statistics of one."""
    return lambda value, mapping: {"": sum(original(value, mapping).values())}


@fault("miniformer.data.inspect:_read_or_error")
def check_ends_at_the_first_fault(original):
    """Records after an invalid one are not checked."""

    def _read_or_error(records, rows):
        for row, result in original(records, rows):
            yield row, result
            if not isinstance(result, dict):
                return

    return _read_or_error


# Tokenizers.


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.decode")
def decoded_text_is_stripped(original):
    """Decoded text is stripped."""
    return lambda self, ids: original(self, ids).strip()


@fault("miniformer.data.tokenizers.tokenizer:_read_eos_token")
def declared_end_of_text_is_not_read(original):
    """The EOS token of a tokenizer_config.json is ignored."""
    return lambda path, backend: None


@fault("miniformer.data.tokenizers.tokenizer:_infer_template")
def template_of_a_tokenizer_is_ignored(original):
    """The special tokens of a tokenizer's template are left out."""
    return lambda backend: None


@fault("miniformer.data.tokenizers.tokenizer:_bytes_to_unicode")
def one_byte_is_taken_for_another(original):
    """Two bytes of byte-level tokens are swapped."""

    def _bytes_to_unicode():
        characters = original()
        swapped = {173: 174, 174: 173, 97: 98, 98: 97}
        return characters | {byte: characters[replacement] for byte, replacement in swapped.items()}

    return _bytes_to_unicode


@fault("miniformer.data.tokenizers.training:TextSample.__iter__")
def tokenizer_learns_from_all_of_a_large_text(original):
    """The sample of a large text is not truncated."""
    return lambda self: iter(self.texts)


@fault("miniformer.data.tokenizers.bpe_dropout:BPEMerges.apply_dropout")
def undone_merge_loses_a_token(original):
    """An undone merge loses its second token."""

    def apply_dropout(self, ids, dropout, rng):
        import numpy as np

        tokens, positions = original(self, ids, dropout, rng)
        _, first = np.unique(positions, return_index=True)
        return tokens[first], positions[first]

    return apply_dropout


@fault("miniformer.data.tokenizers.bpe_dropout:with_bpe_dropout")
def bpe_dropout_stays_on_in_validation(original):
    """Merges are undone in validation as well."""

    def with_bpe_dropout(collate_fn, dropout, **options):
        import numpy as np

        collate = original(collate_fn, dropout, **options)
        return lambda examples, rng: collate(examples, rng or np.random.default_rng(0))

    return with_bpe_dropout


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.stable_length")
def half_character_is_given(original):
    """A stream yields U+FFFD for the first bytes of a character."""
    return lambda self, ids, text: len(text)


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.stable_length")
def run_of_bytes_is_given(original):
    """A stream yields characters that a later byte turns to U+FFFD."""
    return lambda self, ids, text: len(text.rstrip("\ufffd"))


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.stable_length")
def rewritten_text_is_given(original):
    """A stream yields the last word, although its decoder may remove a space."""

    def stable_length(self, ids, text):
        self.__dict__["has_contextual_decoding"] = False
        return original(self, ids, text)

    return stable_length


@fault("miniformer.data.inspect:check_training_rules")
def data_check_knows_records_only(original):
    """`data check` does not apply the rules for complete data sets."""

    def check_training_rules(task, splits, *, max_errors=10):
        pass

    return check_training_rules


@fault("miniformer.data.inspect:check_training_rules")
def data_check_omits_rare_labels(original):
    """`data check` omits the warnings of training about records."""

    def check_training_rules(task, splits, *, max_errors=10):
        original(task, splits, max_errors=max_errors)

    return check_training_rules


@fault("miniformer.data.rules:require_nonempty")
def training_takes_empty_files(original):
    """Training accepts a file of empty records."""

    def require_nonempty(task, records):
        pass

    return require_nonempty


@fault("miniformer.data.rules:group_similar_labels")
def labels_alike_are_not_found(original):
    """Labels are compared without Unicode normalization."""

    def group_similar_labels(labels):
        groups = {}
        for label in labels:
            groups.setdefault(str(label).strip(), []).append(label)
        return [group for group in groups.values() if len(group) > 1]

    return group_similar_labels


@fault("miniformer.data.reading.parsing:decode")
def marks_within_files_are_kept(original):
    """A byte-order mark within a concatenated file is a JSON error."""

    def decode(raw):
        text = original(raw)
        return "\ufeff" + text if text.startswith("\ufeff") else text

    return decode


@fault("miniformer.data.reading.parsing:parse_line")
def carriage_returns_are_bad_json(original):
    """A file with carriage returns as line ends is reported as JSON with extra data."""

    def parse_line(raw, checks, mapper=None):
        return original(raw.replace(b"\r", b" "), checks, mapper)

    return parse_line


@fault("miniformer.data.inspect:check_training_rules")
def labels_that_training_lacks_are_not_reported(original):
    """Validation data is not checked against the fitted task."""

    def check_training_rules(task, splits, *, max_errors=10):
        return original(task, splits[:1], max_errors=max_errors)

    return check_training_rules


@fault("miniformer.data.batching.loader:BatchLoader.load_state_dict")
def a_pass_begins_with_its_first_pool(original):
    """A resumed epoch starts with the first chunk."""
    return lambda self, state: original(self, {**state, "pool": 0})


@fault("miniformer.data.batching.chunks:StreamChunks.iter_epoch")
def a_resumed_stream_leaves_out_a_pool(original):
    """A resumed stream skips the current chunk."""
    return lambda self, rng, start_chunk=0, epoch=0: original(
        self, rng, start_chunk + (start_chunk > 0)
    )


@fault("miniformer.data.selection:RecordSubset.location")
def line_of_a_selected_record_is_its_number(original):
    """The location of a valid record is that of another record."""
    return lambda self, index: self.records.location(index)


@fault("miniformer.data.batching.loader:find_token_tensors")
def declared_tokens_are_not_counted(original):
    """Tokens are counted only in tensors with usual names."""

    def find_token_tensors(batch, declared=None):
        defaults = ("input_ids", "inputs", "source", "target")
        return {name: mask for name, mask in original(batch, declared).items() if name in defaults}

    return find_token_tensors


@fault("miniformer.data.batching.loader:BatchLoader._rng")
def batches_of_a_chunk_draw_the_same(original):
    """Batches of a chunk share one random generator state."""
    return lambda self, *position: original(self, *position[:2], *[0] * len(position[2:]))


@fault("miniformer.data.batching.loader:BatchLoader._rng")
def chunks_draw_the_same(original):
    """Chunks share one random generator state."""
    return lambda self, *position: original(
        self, position[0], *[0] * len(position[1:2]), *position[2:]
    )


@fault("miniformer.data.batching.balancing:resample_rows")
def rows_are_drawn_independently(original):
    """Rows are drawn with replacement, so that shares are exact only on average."""

    def resample_rows(groups, weights, rng):
        return rng.choice(len(groups), len(groups), p=weights / weights.sum())

    return resample_rows


@fault("miniformer.tasks.common.label_task:LabelTask._sample_rows")
def resampling_depends_on_earlier_batches(original):
    """The sampler has a random generator of its own, which a resumed run starts anew."""
    import numpy as np

    generators = {}

    def sample_rows(self, chunk, rng):
        own = generators.setdefault(id(chunk), np.random.default_rng(0))
        return original(self, chunk, own)

    return sample_rows


@fault("miniformer.data.holdout:input_digest")
def equal_inputs_are_on_both_sides(original):
    """Records with equal inputs are divided between training and validation."""

    def input_digest(record):
        return original({"input": [record["input"], record["label"]]})

    return input_digest


@fault("miniformer.data.holdout:_without_unknown_labels")
def validation_has_classes_of_its_own(original):
    """All records of a class may be set aside for validation."""
    import numpy as np

    def _without_unknown_labels(selected, groups, labels):
        return np.array(sorted(i for key in selected for i in groups[key]), dtype=np.int64)

    return _without_unknown_labels


@fault("miniformer.data.holdout:record_labels")
def held_out_classes_are_random(original):
    """The validation part is drawn regardless of the classes."""
    return lambda record: ()


@fault("miniformer.data.holdout:_select")
def split_follows_the_order(original):
    """The first records are set aside."""
    import numpy as np

    return lambda records, share: np.arange(round(share * len(records)))


@fault("miniformer.data.holdout:_split_text")
def text_is_held_out_at_its_start(original):
    """The first part of a text is set aside."""
    return lambda records, share: original(records, 1 - share)[::-1]


@fault("miniformer.data.folds:assign_folds")
def folds_ignore_classes(original):
    """Folds are random, whatever the classes."""
    return lambda groups, strata, num_folds, seed: original(
        groups, [0] * len(strata), num_folds, seed
    )


@fault("miniformer.data.folds:assign_folds")
def folds_divide_equal_inputs(original):
    """Equal inputs may be in different folds."""
    return lambda groups, strata, num_folds, seed: original(
        range(len(groups)), strata, num_folds, seed
    )


@fault("miniformer.commands.data:_summary")
def data_check_counts_no_warnings(original):
    """`data check` finds no problems below a warning."""
    return lambda num_invalid, num_warnings: original(num_invalid, 0)


@fault("miniformer.data.batching.loader:BatchLoader.__len__")
def epochs_have_the_batches_of_the_first(original):
    """The length of a loader is the number of batches of the first epoch."""

    def length(self):
        start, self._epoch_start = self._epoch_start, (0, 0, 0)
        try:
            return original(self)
        finally:
            self._epoch_start = start

    return length
