"""Hugging Face's files, both ways.

| file | holds |
|---|---|
| `configs.py` | a family's `config.json`, read and written: its keys and our fields |
| `attention.py` | the same for rotations and sliding windows, which take several keys |
| `weights.py` | the names of its tensors, and how they are laid out in its files |
| `families/` | every family: the two above as data |
| `files.py` | directories of strangers, read with care and tensor by tensor |
| `reading.py`, `writing.py` | from a directory of theirs to a model of ours, and back |
| `texts.py` | tokenizers, class names, decoding settings |
| `importing.py` | what a user calls: `from_hf`, `import_hf`; `to_hf` is in `writing.py` |
"""
