"""The description of a model in its directory: `config.json` and `format_version`.

Version 2 of the format adds to `config.json`: `transforms` of the model, packages that it
`requires`, and names of further `files`. A model without them, and without `quantization.json`, is
written in version 1, which earlier versions of Miniformer read.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniformer import registry
from miniformer.config import ConfigError, TransformerConfig, UserError
from miniformer.model.hub import suggest_model_directory
from miniformer.utils.atomic import atomic_path, write_json, write_text
from miniformer.utils.jsonl import read_json

FORMAT_VERSIONS = ("1", "2")
STORAGE_FILE = "quantization.json"
_RESERVED_FILES = ("config.json", "model.safetensors", "format_version", STORAGE_FILE)
# The key by which readers of version 1, which reject unknown keys, name the version in a message.
_VERSION_KEY = "since_format_version_2"
_EXTRA_KEYS = ("transforms", "requires", "files")


class ModelDescription(NamedTuple):
    """Description of a model.

    Args:
        architecture: name of the class.
        config: its config.
        transforms: transforms, each `{"type": name, options}`, in order.
        requires: installed packages that the model needs.
        files: names of further files in the directory.
        is_quantized: weights are stored in the types of `quantization.json`.
    """

    architecture: str
    config: TransformerConfig
    transforms: tuple[dict[str, Any], ...] = ()
    requires: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    is_quantized: bool = False


def read_config(directory: Path) -> tuple[str, TransformerConfig]:
    """Reads the architecture's name and the config of a model directory; see `read_description`."""
    return read_description(directory)[:2]


def read_description(directory: Path) -> ModelDescription:
    """Reads and checks the description of the model in a directory.

    Raises:
        UserError: the directory is missing, has another format version or an invalid config, or
            requires a package that is not installed.
    """
    if not directory.is_dir():
        problem = (
            "a file, not a model directory" if directory.exists() else "no such model directory"
        )
        raise UserError(f"{directory}: {problem}{suggest_model_directory(directory)}")
    path = directory / "config.json"
    try:
        version = (directory / "format_version").read_text(encoding="utf-8").strip()
        if version not in FORMAT_VERSIONS:
            raise UserError(
                f"{directory}: format version {version}; this version of Miniformer reads "
                f"{' and '.join(FORMAT_VERSIONS)}"
            )
        values = read_json(path)
        extra = _pop_extra(values, path) if version != "1" else {}
        architecture = values.pop("architecture")
        config = TransformerConfig.from_dict(values, stored=True)
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        if missing == "format_version" and '"model_type"' in _read_text(path):
            raise UserError(
                f"{directory}: is a Hugging Face model; convert it with `miniformer import`, "
                "or use miniformer.from_hf"
            ) from None
        hint = suggest_model_directory(directory)
        raise UserError(f"{directory}: not a model directory: {missing} is missing{hint}") from None
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from None
    except UserError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a model config: {error!r}") from None
    is_quantized = version != "1" and (directory / STORAGE_FILE).is_file()
    return ModelDescription(architecture, config, **extra, is_quantized=is_quantized)


def _pop_extra(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Removes the keys of format version 2 from a config, and checks their values.

    Raises:
        UserError: a value is invalid, a package is missing, or a transform is unknown.
    """
    values.pop(_VERSION_KEY, None)
    extra = {key: values.pop(key, []) for key in _EXTRA_KEYS}
    for key, items in extra.items():
        item_type = dict if key == "transforms" else str
        if not isinstance(items, list) or not all(isinstance(item, item_type) for item in items):
            raise UserError(f"{path}: {key} must be a list of {item_type.__name__}, not {items!r}")
    for package in extra["requires"]:
        check_installed(package, path.parent)
    for name in extra["files"]:
        if (problem := file_name_problem(name)) is not None:
            raise UserError(f"{path}: files: {problem}")
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent}: {name} is missing, which config.json lists in files")
    for problem in registry.setting_problems("transform", extra["transforms"], label="transforms"):
        raise UserError(f"{path}: {problem}")
    return {key: tuple(items) for key, items in extra.items()}


def check_required_packages(directory: Path) -> None:
    """Checks the packages that a model directory requires, if there is one.

    Raises:
        UserError: one is not installed.
    """
    try:
        values = read_json(directory / "config.json")
        packages = [package for package in values.get("requires", ()) if isinstance(package, str)]
    except (OSError, ValueError, AttributeError, TypeError):
        return  # reading the model reports it
    for package in packages:
        check_installed(package, directory)


def check_installed(package: str, directory: Path) -> None:
    """Checks that a package which a model requires is installed.

    Raises:
        UserError: it is not.
    """
    try:
        importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise UserError(
            f"{directory}: the model requires the package {package!r}, which is not installed; "
            f"pip install {package}"
        ) from None


def file_name_problem(name: str) -> str | None:
    """Problem of the name of a further file; None: there is none."""
    if name in _RESERVED_FILES:
        return f"{name!r} is a file of every model directory; choose another name"
    if not name or Path(name).name != name or name.startswith(".") or "\\" in name:
        return f"{name!r} must be the name of a file in the model directory, without a folder"
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def write_config(directory: Path, architecture: str, config: TransformerConfig) -> None:
    """Writes the description of a model without transforms and further files."""
    write_description(directory, ModelDescription(architecture, config))


def write_description(directory: Path, description: ModelDescription) -> None:
    """Writes `config.json` and the lowest format version that has everything."""
    values: dict[str, Any] = {"architecture": description.architecture}
    extra = {key: getattr(description, key) for key in _EXTRA_KEYS}
    if used := {key: list(items) for key, items in extra.items() if items}:
        values |= {_VERSION_KEY: [*used], **used}
    write_json(directory / "config.json", {**values, **description.config.to_dict()})
    version = "2" if used or description.is_quantized else "1"
    write_text(directory / "format_version", version + "\n")


def required_packages(
    config: TransformerConfig,
    transforms: Sequence[Mapping[str, Any]],
    weight_storage: Mapping[str, Mapping[str, Any]],
    others: Sequence[str],
) -> tuple[str, ...]:
    """Packages of the components of a model that are not built in, and others, without repeats.

    Components that a process has registered itself belong to no package.
    """
    used = [("transform", transform["type"]) for transform in transforms]
    used += [("weight_storage", str(item["type"])) for item in weight_storage.values()]
    for field in dataclasses.fields(config):
        kinds, value = field.metadata.get("of"), getattr(config, field.name)
        value = value["type"] if isinstance(value, dict) and kinds else value
        used += [(kind, value) for kind in (kinds or "").split(",") if kind and value is not None]
    packages = [registry.package_of(kind, name) for kind, name in dict.fromkeys(used)]
    return tuple(dict.fromkeys(filter(None, [*packages, *others])))


def write_files(directory: Path, files: Mapping[str, bytes | Path]) -> tuple[str, ...]:
    """Writes further files, and returns their names.

    Raises:
        UserError: a name is invalid, or a file to copy does not exist.
    """
    for name, content in files.items():
        if (problem := file_name_problem(name)) is not None:
            raise UserError(f"extra_files: {problem}")
        if isinstance(content, Path) and not content.is_file():
            raise UserError(f"extra_files: {name}: {content} does not exist")
        if isinstance(content, bytes) or content.resolve() != (directory / name).resolve():
            with atomic_path(directory / name) as path:
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    shutil.copyfile(content, path)
    return tuple(files)
