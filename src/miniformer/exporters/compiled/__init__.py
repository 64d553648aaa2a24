"""Destinations of exported programs: pt2, AOTInductor, OpenVINO, ExecuTorch and TVM.

    Source -> programs of tensors -> `torch.export` -> `Format.write` -> `Format.load` -> `compare`

A destination is a `Format`: it writes one program, and loads it with its own runtime.
"""
