"""Export: a trained model as files that other runtimes execute without this package.

    model directory -> `export(model, out, to=NAME)` -> exporter -> files -> verification

Each exporter is a function `(directory, out, **options)` in its own module; `destination.py` has
the decorator that states its packages. `onnx/` also has a runner without torch.
"""
