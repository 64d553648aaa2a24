"""Exported folders without their graphs: the views of the model compute in their place."""

from types import SimpleNamespace

import torch
from torch.utils import _pytree as pytree

from miniformer.exporters.onnx import bundle
from miniformer.exporters.onnx.runner import run
from miniformer.exporters.onnx.session import OnnxModel
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import read_source


class TorchGraph:
    """Stand-in of `run.Graph` that computes with the view of a program.

    Args:
        program: of `make_programs`.
    """

    def __init__(self, program):
        self.program, (self.examples, self.structure) = (
            program,
            pytree.tree_flatten(program.view.example_inputs()),
        )
        pairs = zip(program.inputs, self.examples, strict=True)
        self.inputs = {name: SimpleNamespace(name=name, shape=x.shape) for name, x in pairs}

    def get_inputs(self):
        """Names and shapes of the inputs, as a session of onnxruntime has them."""
        return [*self.inputs.values()]

    def get_outputs(self):
        """Names of the outputs, as a session of onnxruntime has them."""
        return [SimpleNamespace(name=name) for name in self.program.outputs]

    @torch.inference_mode()
    def run(self, feeds):
        """Maps inputs to outputs by name."""
        pairs = zip(self.program.inputs, self.examples, strict=True)
        given = [torch.as_tensor(feeds[name]).to(example.dtype) for name, example in pairs]
        outputs = self.program.view(*pytree.tree_unflatten(given, self.structure))
        return dict(zip(self.program.outputs, pytree.tree_leaves(outputs), strict=True))


class TorchSession(TorchGraph):
    """Stand-in of a session of onnxruntime."""

    def run(self, names, feeds):
        """Maps inputs by name to outputs in the order of their names."""
        outputs = super().run(feeds)
        return [outputs[name].numpy() for name in names]


def torch_model(source):
    """An `OnnxModel` of a source whose graphs are stand-ins."""
    graphs = OnnxModel.__new__(OnnxModel)
    graphs.config = source.config
    graphs.sessions = {program.name: TorchSession(program) for program in make_programs(source)}
    return graphs


def write_folder(pipeline, folder):
    """Writes an exported folder, with empty files as graphs; returns its programs by part."""
    pipeline.save(folder.with_name(f"{folder.name}-model"))
    source = read_source(folder.with_name(f"{folder.name}-model"))
    folder.mkdir()
    programs = {program.name: program for program in make_programs(source)}
    files = {name: f"{name}.onnx" for name in programs}
    bundle.write_bundle(source, folder, files, "float32")
    return programs


def runner_model(pipeline, folder, monkeypatch):
    """A `run.Model` of a pipeline whose graphs are stand-ins."""
    programs = write_folder(pipeline, folder)
    monkeypatch.setattr(run, "Graph", lambda path, threads: TorchGraph(programs[path.stem]))
    return run.Model(folder)
