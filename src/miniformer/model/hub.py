"""Model directories on a hub: fetched by name, and pushed."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.utils.atomic import backup_path

# A model's own files: no pickles, no code.
_ALLOW_PATTERNS = [
    *("*.json", "*.safetensors", "format_version", "README.md", "*.png"),
    *("*.txt", "*.model", "*.spm", "*.jinja"),  # of tokenizers, at any depth
]
# As the hub has them: neither part begins or ends with a dash or a dot, or holds two of them.
_REPO_ID_PART = r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?"
_REPO_ID = re.compile(rf"{_REPO_ID_PART}/{_REPO_ID_PART}", re.ASCII)
_RUN_SUBDIRECTORIES = ("best", "last")  # model directories within a run's folder


def resolve_directory(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The directory that `source` names; one on the hub is fetched into the hub's cache.

    Nothing that looks like a path is sent to the hub: only a name of the form "user/name" that
    neither exists here nor begins with an existing folder, or with `runs`.

    Args:
        source: a directory, or a name on the hub such as "user/name".
        revision: of a name on the hub: a branch, tag or commit; None: its main branch.

    Raises:
        UserError: there is no such directory, or the hub has none or cannot be reached.
    """
    if name_or_path == "":
        raise UserError("no such model directory: its name is empty")
    if isinstance(name_or_path, Path) or _is_path(name_or_path):
        if revision is not None:
            raise UserError(
                f"revision={revision!r} is of a name on the hub; {name_or_path} is a directory"
            )
        return _existing_or_backup(Path(name_or_path))
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name_or_path, revision=revision, allow_patterns=_ALLOW_PATTERNS)
        )
    except Exception as error:  # of many libraries
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name_or_path}: there is no such directory, and the hub did not give a model of that name: "
            f"{told}"
        ) from None


def _is_path(name_or_path: str) -> bool:
    """Whether a string is a path, existing or mistyped, and not a name on the hub."""
    if not _REPO_ID.fullmatch(name_or_path) or Path(name_or_path).exists():
        return True
    first, last = name_or_path.split("/")
    return Path(first).exists() or first == "runs" or last in _RUN_SUBDIRECTORIES


def _existing_or_backup(directory: Path) -> Path:
    """The directory; or the one that stood there, where a kill came while it was replaced."""
    if directory.exists() or not directory.name:
        return directory
    before = backup_path(directory)
    return before if before.is_dir() else directory


def is_model_directory(directory: Path) -> bool:
    """Whether a folder holds what a model directory begins with."""
    return (directory / "format_version").is_file() and (directory / "config.json").is_file()


def suggest_model_directory(path: Path) -> str:
    """Hint that names the model directory that a wrong path is nearest to; empty: there is none."""
    if path.is_file():
        candidates = [path.parent]
    elif path.is_dir():
        candidates = [path / name for name in _RUN_SUBDIRECTORIES]
        candidates += [
            each / name for each in sorted(path.iterdir()) for name in ("", *_RUN_SUBDIRECTORIES)
        ]
        candidates.append(path.parent)
    else:
        candidates = []
        if path.parent.is_dir():
            names = [each.name for each in path.parent.iterdir()]
            near = difflib.get_close_matches(path.name, names, n=3)
            candidates = [
                path.parent / each / name for each in near for name in ("", *_RUN_SUBDIRECTORIES)
            ]
            candidates += [path.parent, *(path.parent / name for name in _RUN_SUBDIRECTORIES)]
    found = next((each for each in candidates if is_model_directory(each)), None)
    return "" if found is None else f"; did you mean {found}?"


def upload_directory(
    directory: Path, repo_id: str, *, private: bool = False, message: str | None = None
) -> str:
    """Uploads a directory; returns the address of the commit.

    Args:
        directory: what to upload.
        name: the repository, such as "user/name", made if missing.
        private: whether a new repository is private.
        message: of the commit.

    Raises:
        UserError: the hub refuses it or cannot be reached.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise UserError(f"a repository's name is 'user/name', not {repo_id!r}")
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repo_id, folder_path=directory, commit_message=message or "Upload model"
        )
    except Exception as error:  # of many libraries
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{repo_id}: the hub did not take it: {told}") from None
    return str(made)
