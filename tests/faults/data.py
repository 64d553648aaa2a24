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
    """Windows do not say where documents meet."""

    def collate(self, chunk, starts, rng=None):
        batch = original(self, chunk, starts, rng)
        if "segment_ids" in batch:
            batch["segment_ids"] = (batch["segment_ids"] != 0).long()
        return batch

    return collate


@fault("miniformer.data.batching.packing:PackedBatcher.num_windows")
def validation_leaves_out_the_last_window(original):
    """A last window that is not full is not validated."""
    return lambda self, chunk: max(1, len(chunk.columns["ids"]) // self.seq_len)


@fault("miniformer.data.batching.length_bucketing:LengthBucketBatcher.plan_batches")
def budget_of_a_batch_ignores_padding(original):
    """Batches are cut by the tokens in them, without padding."""

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
    """A batch may not be as long as its limit, only shorter."""

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
    """Rows of unequal length are filled, and the mask does not say where."""
    return lambda sequences, padding_value=0: (original(sequences, padding_value)[0], None)


@fault("miniformer.data.batching.loader:BatchLoader._rng")
def every_epoch_has_the_same_order(original):
    """The epoch does not decide the order."""
    return lambda self, *position: original(self, 0, *position[1:])


@fault("miniformer.data.batching.loader:BatchLoader.load_state_dict")
def resumed_pass_begins_with_its_first_batch(original):
    """A pass that is resumed begins with the pool's first batch."""
    return lambda self, state: original(self, {**state, "batch": 0})


@fault("miniformer.data.batching.loader:BatchLoader._batch_of_rank")
def all_ranks_get_the_same_batches(original):
    """Every rank is given the batch of the first."""

    def _batch_of_rank(self, rank_batches):
        rank, self.rank = self.rank, 0
        try:
            return original(self, rank_batches)
        finally:
            self.rank = rank

    return _batch_of_rank


@fault("miniformer.data.batching.loader:count_tokens")
def padding_counts_as_tokens(original):
    """Positions of padding count as tokens."""
    return lambda batch, declared=None: (original(batch, declared)[1],) * 2


@fault("miniformer.data.batching.chunks:RecordChunks._chunk_indices")
def large_files_are_read_in_order(original):
    """Data that is not kept in memory has the file's order in each epoch."""
    return lambda self, rng: original(self, None)


@fault("miniformer.data.batching.chunks:RecordChunks.__getitem__")
def bad_record_of_a_worker_is_dropped(original):
    """A pool with a bad record is an empty one."""

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


@fault("miniformer.data.reading.index:RecordIndex.line_number")
def line_numbers_skip_blank_lines(original):
    """The number of a line does not count the blank lines before it."""
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
    """Of a name that is there twice the last value is taken."""
    return lambda text: list(dict.fromkeys(original(text)))


@fault("miniformer.data.reading.parsing:RecordError.__reduce__")
def error_of_a_worker_loses_its_line(original):
    """A RecordError of another process names line 0."""
    return lambda self: (type(self), (self.path, 0, self.problem))


@fault("miniformer.data.reading.records:JSONLinesDataset.read")
def records_come_in_the_order_of_the_file(original):
    """Records are returned in ascending order, whatever order was asked for."""
    return lambda self, indices: original(self, sorted(int(index) for index in indices))


@fault("miniformer.data.reading.streaming:_stream_lines")
def stream_numbers_records_instead_of_lines(original):
    """Blank lines of a stream do not count in the place of a record."""

    def stream_lines(stream, name, checks):
        for number, (_, record) in enumerate(original(stream, name, checks), 1):
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
    """A packed file that ends too early is not an error."""

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
    """A file that changes while it is in use is not noticed."""
    return lambda self: None


@fault("miniformer.data.reading.schema:features_to_array")
def keys_of_objects_have_no_order(original):
    """Features of objects come in the order in which a record names them."""

    def features_to_array(value, dtype=None):
        import numpy as np

        dtype = np.float32 if dtype is None else dtype
        if isinstance(value[0], dict):
            value = [list(item.values()) for item in value]
        return original(value, dtype)

    return features_to_array


@fault("miniformer.data.inspect:find_duplicates")
def duplicates_within_a_split_are_missed(original):
    """Only inputs that are in both splits count as duplicates."""
    return lambda reference, split: (0, []) if reference is split else original(reference, split)


@fault("miniformer.data.inspect:_read_or_error")
def check_ends_at_the_first_fault(original):
    """Records after a faulty one are not looked at."""

    def _read_or_error(records, rows):
        for row, result in original(records, rows):
            yield row, result
            if not isinstance(result, dict):
                return

    return _read_or_error


# Tokenizers.


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.decode")
def decoded_text_is_stripped(original):
    """Spaces around a decoded text are lost."""
    return lambda self, ids: original(self, ids).strip()


@fault("miniformer.data.tokenizers.tokenizer:_read_eos_token")
def declared_end_of_text_is_not_read(original):
    """The token that a tokenizer_config.json says ends a text is not looked for."""
    return lambda path, backend: None


@fault("miniformer.data.tokenizers.tokenizer:_infer_template")
def template_of_a_tokenizer_is_ignored(original):
    """What a tokenizer's file puts around texts is left out."""
    return lambda backend: None


@fault("miniformer.data.tokenizers.tokenizer:_bytes_to_unicode")
def one_byte_is_taken_for_another(original):
    """Two bytes of byte-level tokens change places."""

    def _bytes_to_unicode():
        characters = original()
        swapped = {173: 174, 174: 173, 97: 98, 98: 97}
        return characters | {byte: characters[other] for byte, other in swapped.items()}

    return _bytes_to_unicode


@fault("miniformer.data.tokenizers.training:TextSample.__iter__")
def tokenizer_learns_from_all_of_a_large_text(original):
    """A sample of a large text is all of it."""
    return lambda self: iter(self.texts)


@fault("miniformer.data.tokenizers.bpe_dropout:BPEMerges.apply_dropout")
def undone_merge_loses_a_token(original):
    """Of a merge that is undone only the first token stays."""

    def apply_dropout(self, ids, dropout, rng):
        import numpy as np

        tokens, positions = original(self, ids, dropout, rng)
        _, first = np.unique(positions, return_index=True)
        return tokens[first], positions[first]

    return apply_dropout


@fault("miniformer.data.tokenizers.bpe_dropout:_collate_with_dropout")
def bpe_dropout_stays_on_in_validation(original):
    """Merges are undone in validation as well."""

    def collate(examples, rng, **options):
        import numpy as np

        return original(examples, rng or np.random.default_rng(0), **options)

    return collate


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.stable_length")
def half_character_is_given(original):
    """A stream gives U+FFFD for the first bytes of a character."""
    return lambda self, ids, text: len(text)


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.stable_length")
def run_of_bytes_is_given(original):
    """A stream gives characters of bytes that a later byte turns to U+FFFD."""
    return lambda self, ids, text: len(text.rstrip("\ufffd"))


@fault("miniformer.data.tokenizers.tokenizer:Tokenizer.stable_length")
def rewritten_text_is_given(original):
    """A stream gives the last word, though its decoder may take a space back."""

    def stable_length(self, ids, text):
        self.__dict__["has_contextual_decoding"] = False
        return original(self, ids, text)

    return stable_length


@fault("miniformer.data.inspect:check_training_rules")
def data_check_knows_records_only(original):
    """`data check` does not know the rules of whole files."""

    def check_training_rules(task, splits, *, max_errors=10):
        pass

    return check_training_rules


@fault("miniformer.data.rules:require_nonempty")
def training_takes_empty_files(original):
    """A file whose records are all empty is trained on."""

    def require_nonempty(task, records):
        pass

    return require_nonempty


@fault("miniformer.data.rules:group_similar_labels")
def labels_alike_are_not_found(original):
    """Labels are compared by their spaces, but not by how Unicode spells them."""

    def group_similar_labels(labels):
        groups = {}
        for label in labels:
            groups.setdefault(str(label).strip(), []).append(label)
        return [group for group in groups.values() if len(group) > 1]

    return group_similar_labels


@fault("miniformer.data.reading.parsing:_decode")
def marks_within_files_are_kept(original):
    """A byte-order mark within a file of joined files makes a line no JSON."""

    def _decode(raw):
        text = original(raw)
        return "\ufeff" + text if text.startswith("\ufeff") else text

    return _decode


@fault("miniformer.data.reading.parsing:parse_line")
def carriage_returns_are_bad_json(original):
    """A file whose lines end in carriage returns alone is reported as JSON with extra data."""

    def parse_line(raw, checks):
        return original(raw.replace(b"\r", b" "), checks)

    return parse_line


@fault("miniformer.data.inspect:check_training_rules")
def labels_that_training_lacks_are_not_reported(original):
    """Validation data is not held to what training data says of all records."""

    def check_training_rules(task, splits, *, max_errors=10):
        original(task, splits[:1], max_errors=max_errors)

    return check_training_rules


@fault("miniformer.data.batching.loader:BatchLoader.load_state_dict")
def a_pass_begins_with_its_first_pool(original):
    """A pass that is taken up again begins with the first pool."""
    return lambda self, state: original(self, {**state, "pool": 0})


@fault("miniformer.data.batching.chunks:StreamChunks.iter_epoch")
def a_resumed_stream_leaves_out_a_pool(original):
    """A stream that is taken up again leaves out the pool that was begun."""
    return lambda self, rng, start_chunk=0: original(self, rng, start_chunk + (start_chunk > 0))


@fault("miniformer.data.selection:RecordSubset.location")
def line_of_a_selected_record_is_its_number(original):
    """A record among the good ones is named by the line of another."""
    return lambda self, index: self.records.location(index)


@fault("miniformer.data.batching.loader:find_token_tensors")
def declared_tokens_are_not_counted(original):
    """Tokens are counted in tensors of usual names only."""

    def find_token_tensors(batch, declared=None):
        usual = ("input_ids", "inputs", "source", "target")
        return {name: mask for name, mask in original(batch, declared).items() if name in usual}

    return find_token_tensors


@fault("miniformer.data.batching.loader:BatchLoader._rng")
def batches_of_a_chunk_draw_the_same(original):
    """The number of a batch within its chunk does not decide its chance."""
    return lambda self, *position: original(self, *position[:2], *[0] * len(position[2:]))


@fault("miniformer.data.batching.loader:BatchLoader._rng")
def chunks_draw_the_same(original):
    """The number of a chunk does not decide its chance."""
    return lambda self, *position: original(
        self, position[0], *[0] * len(position[1:2]), *position[2:]
    )
