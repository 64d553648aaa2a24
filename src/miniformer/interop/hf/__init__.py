"""Import and export of Hugging Face checkpoints.

| file | content |
|---|---|
| `configs.py` | conversion of a family's `config.json` |
| `attention.py` | the same for rotary embeddings and sliding windows, which take several keys |
| `weights.py` | tensor names and layouts of a family |
| `families/` | all families, as data for the two above |
| `files.py` | safe reading of untrusted directories, one tensor at a time |
| `load.py`, `export.py` | from a checkpoint to a model, and back (`to_hf`) |
| `metadata.py`, `decoding.py` | tokenizers, class names and token ids; decoding options |
| `api.py` | entry points of the import: `from_hf`, `import_hf` |
"""
