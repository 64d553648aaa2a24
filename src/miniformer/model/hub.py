"""Download and upload of model directories with the Hugging Face hub."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.utils.atomic import backup_path
from miniformer.utils.jsonl import read_json

# Model files, without pickles and code.
_ALLOW_PATTERNS = [
    *("*.json", "*.safetensors", "format_version", "README.md", "*.png"),
    *("*.txt", "*.model", "*.spm", "*.jinja"),  # of tokenizers, at any depth
]
# The hub's rules: neither half begins or ends with a dash or a dot, or has two in a row.
_REPO_ID_PART = r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?"
_REPO_ID = re.compile(rf"{_REPO_ID_PART}/{_REPO_ID_PART}", re.ASCII)
_RUN_SUBDIRECTORIES = ("best", "last")  # model directories within a run's folder


def resolve_directory(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Returns a local directory; a model on the hub is downloaded to the hub's cache.

    Only a name of the form "user/name" is looked up on the hub, and only if it neither exists
    locally nor begins with an existing folder or with `runs`.

    Args:
        name_or_path: a directory, or a name on the hub such as "user/name".
        revision: branch, tag or commit of a name on the hub; None: its main branch.

    Raises:
        UserError: the directory does not exist, or the hub has no such model or is not reachable.
    """
    if name_or_path == "":
        raise UserError("no such model directory: its name is empty")
    if isinstance(name_or_path, Path) or _is_path(name_or_path):
        if revision is not None:
            raise UserError(
                f"revision={revision!r} needs a name on the hub; {name_or_path} is a directory"
            )
        return _existing_or_backup(Path(name_or_path))
    return _download(name_or_path, revision)


def _download(name: str, revision: str | None) -> Path:
    """Downloads a model unless the hub's cache has it; returns its directory."""
    from huggingface_hub import snapshot_download

    try:
        download = functools.partial(snapshot_download, name, revision=revision)
        directory = Path(download(allow_patterns=_ALLOW_PATTERNS))
        if extra_files := _extra_files(directory):
            download(allow_patterns=[*_ALLOW_PATTERNS, *extra_files])
        return directory
    except Exception as error:  # several libraries raise their own types
        raise UserError(
            f"{name}: no such directory, and the hub returned no model of that name: "
            f"{_one_line(error)}"
        ) from None


def _extra_files(directory: Path) -> list[str]:
    """Names of the further files that the config of a model lists."""
    try:
        files = read_json(directory / "config.json").get("files")
    except (OSError, ValueError, AttributeError):
        return []
    return [name for name in files or () if isinstance(name, str)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _is_path(name_or_path: str) -> bool:
    """True for a path, existing or mistyped; False for a name on the hub."""
    if not _REPO_ID.fullmatch(name_or_path) or Path(name_or_path).exists():
        return True
    first, last = name_or_path.split("/")
    return Path(first).exists() or first == "runs" or last in _RUN_SUBDIRECTORIES


def _existing_or_backup(directory: Path) -> Path:
    """Returns the directory, or its backup if the process was killed while replacing it."""
    if directory.exists() or not directory.name:
        return directory
    backup = backup_path(directory)
    return backup if backup.is_dir() else directory


def is_model_directory(directory: Path) -> bool:
    """True if a folder has the files that identify a model directory."""
    return (directory / "format_version").is_file() and (directory / "config.json").is_file()


def suggest_model_directory(path: Path) -> str:
    """Returns a hint with the model directory nearest to a wrong path; empty: there is none."""
    folders: list[Path] = []
    if path.is_dir():
        folders = [path, *sorted(path.iterdir())]
    elif not path.exists() and path.parent.is_dir():
        siblings = [sibling.name for sibling in path.parent.iterdir()]
        matches = difflib.get_close_matches(path.name, siblings, n=3)
        folders = [*(path.parent / match for match in matches), path.parent]
    candidates = [folder / name for folder in folders for name in ("", *_RUN_SUBDIRECTORIES)]
    candidates.append(path.parent)
    nearest = next(filter(is_model_directory, candidates), None)
    return "" if nearest is None else f"; did you mean {nearest}?"


def upload_directory(
    directory: Path, repo_id: str, *, private: bool = False, message: str | None = None
) -> str:
    """Uploads a directory; see `PretrainedMixin.push_to_hub`.

    Raises:
        UserError: the hub refuses the upload or is not reachable.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise UserError(f"a repository's name is 'user/name', not {repo_id!r}")
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=directory, commit_message=message or "Upload model"
        )
    except Exception as error:  # several libraries raise their own types
        raise UserError(f"{repo_id}: upload to the hub failed: {_one_line(error)}") from None
    return str(commit)
