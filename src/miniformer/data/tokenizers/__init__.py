"""Tokenizers, tokenizer training and BPE dropout."""
