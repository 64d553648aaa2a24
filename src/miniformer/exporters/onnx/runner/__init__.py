"""The runner without torch: `run.py` and `decoding.py`, which an exported folder has copies of.

They import onnxruntime, numpy and tokenizers only.
"""
