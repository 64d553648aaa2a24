"""Saving and loading of models: `config_file.py` has the description, this file the weights.

Loading reads JSON and safetensors only; it neither unpickles nor runs code of the directory.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor, nn

from miniformer.config import TransformerConfig, UserError
from miniformer.model.config_file import (
    STORAGE_FILE,
    ModelDescription,
    read_description,
    required_packages,
    write_description,
    write_files,
)
from miniformer.model.hub import resolve_directory, upload_directory
from miniformer.model.weight_file import assign_weights, empty_model, open_weights
from miniformer.utils.atomic import atomic_path, write_json


class PretrainedMixin:
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a module with a `config`.

    Attributes:
        transforms: transforms of the model, see `apply_transforms`.
        weight_storage: types in which matrices are stored, `{"type": name, options}` by name of the
            matrix; see `weight_storage.py`. Empty: as they are.
        extra_files: further files of the model directory by name: bytes, or the path of a file.
        requires: packages that the model needs in addition to those of its components.
    """

    config: TransformerConfig
    transforms: Sequence[Mapping[str, Any]] = ()
    weight_storage: Mapping[str, Mapping[str, Any]] = {}
    extra_files: Mapping[str, bytes | Path] = {}
    requires: Sequence[str] = ()

    def save_pretrained(self, directory: str | Path, *, requires: Sequence[str] = ()) -> None:
        """Writes the model to `directory`, created if missing; each file is written atomically.

        Args:
            directory: the model directory.
            requires: packages that the directory needs in addition to those of the model.

        Raises:
            UserError: two tensors of the model share memory, or a type of `weight_storage` or a
                name of `extra_files` is invalid.
        """
        assert isinstance(self, nn.Module)
        directory, entries = Path(directory), dict[str, Any]()
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        refuse_shared_tensors(weights)
        if self.weight_storage:
            from miniformer.model.weight_storage import encode_weights

            weights, entries = encode_weights(self, weights, self.weight_storage)
        packages = required_packages(
            self.config, self.transforms, self.weight_storage, [*self.requires, *requires]
        )
        directory.mkdir(parents=True, exist_ok=True)
        files = write_files(directory, self.extra_files)
        with atomic_path(directory / "model.safetensors") as path:
            save_file(weights, path, metadata={"format": "pt"})
        (directory / STORAGE_FILE).unlink(missing_ok=True)
        if entries:
            write_json(directory / STORAGE_FILE, {"matrices": entries})
        architecture, transforms = type(self).__name__, tuple(map(dict, self.transforms))
        write_description(
            directory,
            ModelDescription(
                architecture, self.config, transforms, packages, files, is_quantized=bool(entries)
            ),
        )

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, message: str | None = None
    ) -> str:
        """Uploads the model; `from_pretrained(repo_id)` loads it.

        Args:
            repo_id: the repository, such as "user/name", created if missing.
            private: True: a new repository is private.
            message: the commit message.

        Returns:
            The URL of the commit.

        Raises:
            UserError: the hub refuses the upload or is not reachable.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_directory(Path(folder), repo_id, private=private, message=message)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, revision: str | None = None) -> Self:
        """Loads a model of `save_pretrained`, in eval mode and in the float type of the file.

        A file with several float types is loaded as float32. Transforms are applied before the
        weights are matched, and stored types are decoded.

        Args:
            directory: a model directory, or a name on the hub such as "user/name".
            revision: branch, tag or commit of a name on the hub.

        Raises:
            UserError: a file is missing, broken, of another format version or of another model; or
                a package that the model requires is not installed.
        """
        directory = resolve_directory(directory, revision)
        description = read_description(directory)
        if description.architecture != cls.__name__:
            raise UserError(
                f"{directory}/config.json: holds a {description.architecture}, not a {cls.__name__}"
            )
        model: Self = _make_model(cls, description)
        if description.files:
            model.extra_files = {name: directory / name for name in description.files}
        _read_weights(model, directory, is_quantized=description.is_quantized)
        assert isinstance(model, nn.Module)
        return model.eval()


def _make_model(model_class: Any, description: ModelDescription) -> Any:
    """The described model before it has its weights."""
    if not description.transforms:
        return empty_model(lambda: model_class(description.config))
    from miniformer.model.transforms import apply_transforms

    return apply_transforms(model_class(description.config), description.transforms)


def _read_weights(model: Any, directory: Path, *, is_quantized: bool) -> None:
    """Reads the weights of a model, and the types in which they are stored.

    Raises:
        UserError: a file is missing or broken, or is that of another model.
    """
    path = directory / "model.safetensors"
    with open_weights(path) as weights:
        if is_quantized:
            from miniformer.model import weight_storage

            entries = weight_storage.read_entries(directory / STORAGE_FILE)
            weights = weight_storage.decode_weights(
                model, weights, entries, directory / STORAGE_FILE
            )
            model.weight_storage = weight_storage.types_of(entries)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        actual = {name: source.shape for name, source in weights.items()}
        if expected != actual:
            names = sorted({name for name, _ in expected.items() ^ actual.items()})
            raise UserError(
                f"{path}: {len(names)} tensors do not match config.json; the first is "
                f"{names[0]!r}: config {expected.get(names[0], 'none')}, "
                f"file {actual.get(names[0], 'none')}"
            )
        types = {source.dtype for source in weights.values() if source.dtype.is_floating_point}
        if len(types) == 1:
            model.to(types.pop())
        assign_weights(model, weights)


def refuse_shared_tensors(weights: dict[str, Tensor]) -> None:
    """Rejects contiguous tensors that share memory: the file would store separate copies.

    Raises:
        UserError: two tensors share memory; it names them.
    """
    intervals = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name)
        for name, tensor in weights.items()
        if tensor.nbytes
    )
    for (device, _, stop, name), (next_device, start, _, next_name) in itertools.pairwise(
        intervals
    ):
        if device == next_device and start < stop:
            raise UserError(
                f"tensors {name!r} and {next_name!r} share memory, which a model directory cannot "
                "store; give each module its own tensors, e.g. with copy.deepcopy"
            )
