"""From data files to batches: records, tokenizers, packing, the Lightning data module."""
