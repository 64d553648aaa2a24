"""Machine and versions of a measurement, which every benchmark stores with its result."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
                "asimd", "bf16", "i8mm")  # fmt: skip
MODULES = {"llama-cpp-python": "llama_cpp"}  # names of distributions that differ


def environment(*packages, checkouts=None, threads=None):
    """Machine, and versions of Python, torch and other packages.

    Args:
        packages: names of distributions; those that are not installed are omitted.
        checkouts: folders of Git checkouts by name; the version is the commit. None: omitted.
        threads: threads of each run; default: those of torch.

    Returns:
        Values for JSON: cpu, instructions, cores, threads, gpu (null: none), system, python,
        packages.
    """
    cpu, flags = _processor()
    versions = {}
    for package in ("torch", "lightning", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a build without metadata, or missing
            module = sys.modules.get(MODULES.get(package, package))
            if hasattr(module, "__version__"):
                versions[package] = module.__version__
    for name, folder in (checkouts or {}).items():
        if folder is not None:
            versions[name] = _commit(folder)
    return {
        "cpu": cpu,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def _commit(folder):
    """Commit of a checkout; None if the folder is no Git checkout."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor():
    """Name and flags of the processor, if the system has them."""
    fields = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, (fields.get("flags") or fields.get("Features", "")).split()
