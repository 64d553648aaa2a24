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


@destination(_ALL_KINDS, runtime="torch.export.load, in Python without this package")
def export_pt2(directory: Path, out: str, *, verify: bool = True) -> str:
    """Writes programs of `torch.export`."""
    from miniformer.exporters.compiled.pt2 import FORMAT
    from miniformer.exporters.compiled.write import write_programs

    return write_programs(FORMAT, directory, Path(out), verify=verify)


@destination(_ALL_KINDS, runtime="AOTInductor: C++ with libtorch, or torch, on this processor type")
def export_aoti(directory: Path, out: str, *, verify: bool = True) -> str:
    """Writes compiled programs, and a C++ program that calls them."""
    if not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError("to: aoti compiles C++ and needs g++ or clang++; neither was found")
    from miniformer.exporters.compiled.aoti import FORMAT
    from miniformer.exporters.compiled.write import write_programs

    return write_programs(FORMAT, directory, Path(out), verify=verify)


@destination(_ALL_KINDS, runtime="OpenVINO", extra="openvino", packages=("openvino",))
def export_openvino(directory: Path, out: str, *, verify: bool = True) -> str:
    """Writes graphs of OpenVINO, in float32."""
    from miniformer.exporters.compiled.openvino import FORMAT
    from miniformer.exporters.compiled.write import write_programs

    return write_programs(FORMAT, directory, Path(out), verify=verify)
