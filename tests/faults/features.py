"""Faults in inputs that are no texts."""

from tests.faults import fault


@fault("miniformer.model.embedding:output_mask")
def windows_of_padding_are_real(original):
    """The mask of the vectors is all real where the input shortens the sequence."""

    def output_mask(embedding, mask):
        changed = original(embedding, mask)
        return changed if mask is None or changed.shape == mask.shape else changed | True

    return output_mask


@fault("miniformer.tasks.common.standardize:feature_statistics")
def sources_are_standardized_by_first_vectors(original):
    """The statistics are those of the first vectors of the records."""

    def feature_statistics(records, field="input"):
        import numpy as np

        vectors = np.array([next(iter(record[field])) for record in records], dtype=float)
        return vectors.mean(0).tolist(), (vectors.std(0) + 1).tolist()

    return feature_statistics


@fault("miniformer.generation.inputs:left_pad_vectors")
def padding_of_vectors_is_read(original):
    """Sources of vectors have no mask, so that the model reads their padding."""

    def left_pad_vectors(rows):
        return original(rows)[0], None

    return left_pad_vectors


@fault("miniformer.training.tuning.input_length:fit_input_length")
def inputs_are_cut_at_the_vectors_of_the_model(original):
    """Inputs are cut at `seq_len`, though several of them make one vector."""

    def fit_input_length(task, config, seq_len):
        return task

    return fit_input_length


@fault("miniformer.tasks.feature_seq2seq:FeatureSeq2Seq.encode_sources")
def long_sources_of_vectors_are_not_cut(original):
    """Sources of vectors are as long as they are."""

    def encode_sources(self, sources, tokenizer, seq_len):
        return original(self, sources, tokenizer, max(seq_len, 1_000))

    return encode_sources
