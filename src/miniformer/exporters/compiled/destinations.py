"""The destinations of exported programs, with what each takes and needs.

The modules of the formats are imported on use: they import torch, which takes seconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from miniformer.config import UserError
from miniformer.exporters.destination import destination

_ALL_KINDS = (
    "encoders, classifiers, regressors, masked LMs, decoder-only and encoder-decoder models"
)
_EXECUTORCH_LENGTH = 512  # default limit, since memory is planned for the longest input


@destination(_ALL_KINDS, runtime="torch.export.load, in Python without this package")
def export_pt2(directory: Path, out: str, *, verify: bool = True) -> str:
    """Writes programs of `torch.export`."""
    from miniformer.exporters.compiled.pt2 import FORMAT
    from miniformer.exporters.compiled.write import write_programs

    return write_programs(FORMAT, directory, Path(out), verify=verify)


@destination(_ALL_KINDS, runtime="AOTInductor: C++ with libtorch, or torch, on this processor type")
def export_aoti(directory: Path, out: str, *, verify: bool = True) -> str:
    """Writes compiled programs, and a C++ program that calls them."""
    _check_compiler("aoti compiles C++")
    from miniformer.exporters.compiled.aoti import FORMAT
    from miniformer.exporters.compiled.write import write_programs

    return write_programs(FORMAT, directory, Path(out), verify=verify)


@destination(_ALL_KINDS, runtime="OpenVINO", extra="openvino", packages=("openvino",))
def export_openvino(directory: Path, out: str, *, verify: bool = True) -> str:
    """Writes graphs of OpenVINO, in float32."""
    from miniformer.exporters.compiled.openvino import FORMAT
    from miniformer.exporters.compiled.write import write_programs

    return write_programs(FORMAT, directory, Path(out), verify=verify)


@destination(_ALL_KINDS, runtime="TVM, on this processor type", extra="tvm", packages=("tvm",))
def export_tvm(directory: Path, out: str, *, verify: bool = True) -> str:
    """Writes libraries of TVM."""
    _check_compiler("tvm links libraries")
    from miniformer.exporters.compiled.tvm import FORMAT
    from miniformer.exporters.compiled.write import write_programs

    return write_programs(FORMAT, directory, Path(out), verify=verify)


def _check_compiler(purpose: str) -> None:
    if not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError(f"to: {purpose} and needs g++ or clang++; neither was found")


@destination(
    "encoders, classifiers, regressors, masked LMs, decoder-only models",
    runtime="ExecuTorch",
    extra="executorch",
    packages=("executorch",),
)
def export_executorch(
    directory: Path,
    out: str,
    *,
    max_batch: int = 1,
    max_length: int | None = None,
    verify: bool = True,
) -> str:
    """Writes programs for phones.

    Args:
        directory: a model directory.
        out: the folder to write.
        max_batch: largest number of rows.
        max_length: largest number of tokens, and of a past; None: as many as the model reads, at
            most 512.
        verify: compare the programs with the model.
    """
    from miniformer.exporters.compiled.executorch import make_format
    from miniformer.exporters.compiled.write import write_programs
    from miniformer.model.config_file import read_config

    architecture, config = read_config(directory)
    if architecture == "Seq2SeqTransformer":
        raise UserError("to: executorch takes no encoder-decoder model; onnx and openvino do")
    limit = config.max_seq_len
    if max_length is None:
        max_length = min(limit, _EXECUTORCH_LENGTH)
    if not 2 <= max_length <= limit:
        raise UserError(f"max_length must be from 2 to max_seq_len={limit}, not {max_length}")
    if max_batch < 1:
        raise UserError(f"max_batch must be at least 1, not {max_batch}")
    form = make_format(max_batch, max_length)
    batch_sizes = sorted({1, max_batch})
    return write_programs(
        form, directory, Path(out), verify=verify, batch_sizes=batch_sizes,
        columns=min(max_length, 14),
    )  # fmt: skip
