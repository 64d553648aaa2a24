"""ONNX files of a model, and a runner of them without torch."""
