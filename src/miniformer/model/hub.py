"""Model directories on a hub: fetched by name, and pushed."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.utils.atomic import backup_of

# A model's own files: no pickles, no code.
_PATTERNS = [
    *("*.json", "*.safetensors", "format_version", "README.md", "*.png"),
    *("*.txt", "*.model", "*.spm", "*.jinja"),  # of tokenizers, at any depth
]
# As the hub has them: neither part begins or ends with a dash or a dot, or holds two of them.
_PART = r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?"
_NAME = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_OF_RUNS = ("best", "last")  # model directories within a run's folder


def local(source: str | Path, revision: str | None = None) -> Path:
    """The directory that `source` names; one on the hub is fetched into the hub's cache.

    Nothing that looks like a path is sent to the hub: only a name of the form "user/name" that
    neither exists here nor begins with an existing folder, or with `runs`.

    Args:
        source: a directory, or a name on the hub such as "user/name".
        revision: of a name on the hub: a branch, tag or commit; None: its main branch.

    Raises:
        UserError: there is no such directory, or the hub has none or cannot be reached.
    """
    if source == "":
        raise UserError("no such model directory: its name is empty")
    if isinstance(source, Path) or _is_path(source):
        if revision is not None:
            raise UserError(
                f"revision={revision!r} is of a name on the hub; {source} is a directory"
            )
        return _there(Path(source))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_PATTERNS))
    except Exception as error:  # of many libraries
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source}: there is no such directory, and the hub did not give a model of that name: "
            f"{told}"
        ) from None


def _is_path(source: str) -> bool:
    """Whether a string is a path, existing or mistyped, and not a name on the hub."""
    if not _NAME.fullmatch(source) or Path(source).exists():
        return True
    first, last = source.split("/")
    return Path(first).exists() or first == "runs" or last in _OF_RUNS


def _there(directory: Path) -> Path:
    """The directory; or the one that stood there, where a kill came while it was replaced."""
    if directory.exists() or not directory.name:
        return directory
    before = backup_of(directory)
    return before if before.is_dir() else directory


def is_model(directory: Path) -> bool:
    """Whether a folder holds what a model directory begins with."""
    return (directory / "format_version").is_file() and (directory / "config.json").is_file()


def nearest_model(path: Path) -> str:
    """Hint that names the model directory that a wrong path is nearest to; empty: there is none."""
    if path.is_file():
        candidates = [path.parent]
    elif path.is_dir():
        candidates = [path / name for name in _OF_RUNS]
        candidates += [each / name for each in sorted(path.iterdir()) for name in ("", *_OF_RUNS)]
        candidates.append(path.parent)
    else:
        candidates = []
        if path.parent.is_dir():
            names = [each.name for each in path.parent.iterdir()]
            near = difflib.get_close_matches(path.name, names, n=3)
            candidates = [path.parent / each / name for each in near for name in ("", *_OF_RUNS)]
            candidates += [path.parent, *(path.parent / name for name in _OF_RUNS)]
    found = next((each for each in candidates if is_model(each)), None)
    return "" if found is None else f"; did you mean {found}?"


def push(directory: Path, name: str, *, private: bool = False, message: str | None = None) -> str:
    """Uploads a directory; returns the address of the commit.

    Args:
        directory: what to upload.
        name: the repository, such as "user/name", made if missing.
        private: whether a new repository is private.
        message: of the commit.

    Raises:
        UserError: the hub refuses it or cannot be reached.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"a repository's name is 'user/name', not {name!r}")
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=name, folder_path=directory, commit_message=message or "Upload model"
        )
    except Exception as error:  # of many libraries
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: the hub did not take it: {told}") from None
    return str(made)
