"""Faults in `miniformer.interop.gguf` and its exporter."""

from tests.faults import fault


@fault("miniformer.interop.gguf.names:adjacent_pairs")
def rope_halves_stay_halves_in_gguf(original):
    """Rows of queries and keys of Llama are not permuted for llama.cpp."""

    def adjacent_pairs(head_width):
        from miniformer.interop.hf.weights import IDENTITY

        return IDENTITY

    return adjacent_pairs


@fault("miniformer.interop.gguf.names:PLUS_ONE")
def gemma_norms_go_out_without_one(original):
    """Norms of Gemma go out as they are."""
    return original._replace(join=lambda tensors: tensors[0].float())


@fault("miniformer.interop.gguf.names:PLUS_ONE")
def gemma_norms_come_back_with_one(original):
    """Norms of Gemma come back as they are in the file."""
    return original._replace(split=lambda tensor, _: [tensor.float()])


@fault("miniformer.interop.gguf.metadata:write_hyperparameters")
def context_of_gguf_is_the_width(original):
    """The context length in the file is the model's width."""

    def write_hyperparameters(item, config):
        keys = original(item, config)
        return {**keys, f"{item.name}.context_length": config.d_model + 1}

    return write_hyperparameters


@fault("miniformer.interop.gguf.metadata:write_hyperparameters")
def gguf_epsilon_is_the_default(original):
    """The epsilon of norms in the file is that of Llama."""

    def write_hyperparameters(item, config):
        keys = original(item, config)
        return {key: 1e-2 if key.endswith("epsilon") else value for key, value in keys.items()}

    return write_hyperparameters


@fault("miniformer.interop.gguf.metadata:_write_windows")
def windows_of_gguf_are_global(original):
    """Every layer of a file with a window attends to all tokens."""

    def write_windows(item, config):
        keys = original(item, config)
        name = "attention.sliding_window_pattern"
        return {**keys, name: [False] * config.n_layers} if keys else keys

    return write_windows


@fault("miniformer.interop.gguf.load:_read_tie")
def tied_heads_of_gguf_come_back_apart(original):
    """A tied head that is written a second time comes back as one of its own."""

    def read_tie(file, fields):
        tie = original(file, fields)
        return {"tie_embeddings": False} if "output.weight" in file.tensors and tie else tie

    return read_tie


@fault("miniformer.interop.gguf.types:decode")
def q8_0_scales_are_doubled(original):
    """Blocks of eight bits come back with twice their scale."""

    def decode(data, kind, shape):
        tensor = original(data, kind, shape)
        return tensor * 2 if kind == "q8_0" else tensor

    return decode


@fault("miniformer.interop.gguf.types:encode")
def rounded_rows_of_gguf_share_a_scale(original):
    """Rows are rounded as if all had the range of the widest."""

    def encode(tensor, kind):
        if kind in ("f32", "f16", "bf16"):
            return original(tensor, kind)
        tensor = tensor.clone()
        tensor[..., ::32] = tensor.abs().max() * 8
        return original(tensor, kind)

    return encode


@fault("miniformer.interop.gguf.tokenizer:CONTROL")
def special_tokens_of_gguf_are_plain(original):
    """Special tokens are marked as tokens that users define, which texts may spell out."""
    return 4


@fault("miniformer.interop.gguf.read:_Stream.take")
def gguf_headers_are_padded_with_zeros(original):
    """A file that ends within its header is read as if zeros followed."""

    def take(self, count):
        data = self.file.read(min(count, 2**16))
        self.position += count
        return data + bytes(min(count, 2**16) - len(data))

    return take


@fault("miniformer.interop.gguf.families:Architecture.problems")
def every_model_fits_llama_cpp(original):
    """An architecture takes every model of its family."""
    return lambda self, config: iter(())


@fault("miniformer.interop.gguf.write:_zeros")
def missing_biases_of_gguf_are_ones(original):
    """A bias that GPT-NeoX needs and the model lacks is written as ones."""
    import torch

    return lambda size: lambda: torch.ones(size)


@fault("miniformer.interop.gguf.vocabulary:_make_bpe")
def merges_of_gguf_come_back_in_reverse(original):
    """The merges of a tokenizer are read from the last to the first."""

    def make_bpe(vocabulary):
        name = "tokenizer.ggml.merges"
        merges = vocabulary.metadata[name][::-1]
        return original(vocabulary._replace(metadata={**vocabulary.metadata, name: merges}))

    return make_bpe


@fault("miniformer.exporters.gguf:_largest")
def gguf_reports_the_mean_difference(original):
    """The export prints the mean difference as the largest."""
    return lambda expected, actual: float((expected - actual).abs().mean())


@fault("miniformer.exporters.llama_cpp:_FLOAT32")
def llama_cpp_rounds_keys_and_values(original):
    """Keys and values of the comparison are float16."""
    return 1


@fault("miniformer.interop.gguf.metadata:Keys._get")
def keys_of_gguf_are_ignored(original):
    """Keys that the import does not need have their defaults."""

    def _get(self, key, default):
        return original(self, key, default) if default is None else default

    return _get


@fault("miniformer.interop.gguf.families:Architecture.large_scale")
def large_gemma_has_the_scale_of_others(original):
    """Gemma's 27B models have the scale 1 / sqrt(head_dim)."""
    return lambda self, n_layers, d_model, n_heads: None
