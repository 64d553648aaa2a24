"""Parts of token classification: tag schemes, decoding of valid tags, words of a tokenizer."""
