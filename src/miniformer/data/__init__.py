"""From a file of text to batches: records, tokenizers, packing, the Lightning data module."""
