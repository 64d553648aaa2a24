"""Saving and loading of models: `config.json`, `model.safetensors`, `format_version`.

Loading reads JSON and safetensors only; it neither unpickles nor runs code of the directory.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniformer.config import ConfigError, TransformerConfig, UserError
from miniformer.model.hub import resolve_directory, suggest_model_directory, upload_directory
from miniformer.utils.atomic import atomic_path, write_json, write_text

FORMAT_VERSION = "1"


class PretrainedMixin:
    """Adds `save_pretrained`, `from_pretrained` and `push_to_hub` to a module with a `config`."""

    config: TransformerConfig

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the model to `directory`, created if missing; each file is written atomically.

        Raises:
            UserError: two tensors of the model share memory.
        """
        assert isinstance(self, nn.Module)
        directory = Path(directory)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        refuse_shared_tensors(weights)
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_path(directory / "model.safetensors") as path:
            save_file(weights, path, metadata={"format": "pt"})
        write_config(directory, type(self).__name__, self.config)

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

        A file with several float types is loaded as float32.

        Args:
            directory: a model directory, or a name on the hub such as "user/name".
            revision: branch, tag or commit of a name on the hub.

        Raises:
            UserError: a file is missing, broken, of another format version or of another model.
        """
        directory = resolve_directory(directory, revision)
        architecture, config = read_config(directory)
        if architecture != cls.__name__:
            raise UserError(
                f"{directory}/config.json: holds a {architecture}, not a {cls.__name__}"
            )
        model = cls(config)  # type: ignore[call-arg]
        assert isinstance(model, nn.Module)
        path = directory / "model.safetensors"
        try:
            weights = load_file(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; a model directory needs its weights") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file: {error}") from None
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        actual = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if expected != actual:
            names = sorted({name for name, _ in expected.items() ^ actual.items()})
            raise UserError(
                f"{path}: {len(names)} tensors do not match config.json; the first is "
                f"{names[0]!r}: config {expected.get(names[0], 'none')}, "
                f"file {actual.get(names[0], 'none')}"
            )
        types = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
        if len(types) == 1:
            model.to(types.pop())
        model.load_state_dict(weights)
        return model.eval()


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


def read_config(directory: Path) -> tuple[str, TransformerConfig]:
    """Reads the architecture's name and the config of a model directory.

    Raises:
        UserError: the directory is missing, has another format version or an invalid config.
    """
    if not directory.is_dir():
        problem = (
            "a file, not a model directory" if directory.exists() else "no such model directory"
        )
        raise UserError(f"{directory}: {problem}{suggest_model_directory(directory)}")
    path = directory / "config.json"
    try:
        version = (directory / "format_version").read_text(encoding="utf-8").strip()
        values = json.loads(path.read_text(encoding="utf-8"))
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
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a model config: {error!r}") from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory}: format version {version}; "
            f"this version of Miniformer reads {FORMAT_VERSION}"
        )
    return architecture, config


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def write_config(directory: Path, architecture: str, config: TransformerConfig) -> None:
    """Writes a model directory's `config.json` and its format version."""
    values = {"architecture": architecture, **config.to_dict()}
    write_json(directory / "config.json", values)
    write_text(directory / "format_version", FORMAT_VERSION + "\n")
