"""Export to and import of GGUF files, which llama.cpp and programs built on it execute.

| file | content |
|---|---|
| `families.py` | architectures of llama.cpp: which models they take |
| `names.py` | their tensor names and layouts |
| `metadata.py` | config to metadata keys, and back |
| `tokenizer.py`, `vocabulary.py` | tokenizer to metadata keys, and back |
| `types.py` | types of tensors: rounding and its inverse |
| `write.py` | a model to a file, one tensor at a time |
| `read.py` | safe reading of untrusted files |
| `load.py` | from a file to a model directory |

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
