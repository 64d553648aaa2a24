"""Model directories on a hub: fetched by name, and pushed."""

from __future__ import annotations

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
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def _there(directory: Path) -> Path:
    """The directory; or the one that stood there, where a kill came while it was replaced."""
    before = backup_of(directory)
    return before if not directory.exists() and before.is_dir() else directory


def local(source: str | Path, revision: str | None = None) -> Path:
    """The directory that `source` names; one on the hub is fetched into the hub's cache.

    Args:
        source: a directory, or a name on the hub such as "user/name".
        revision: of a name on the hub: a branch, tag or commit; None: its main branch.

    Raises:
        UserError: there is no such directory, or the hub has none or cannot be reached.
    """
    if isinstance(source, Path) or Path(source).exists() or not _NAME.fullmatch(source):
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
            f"{source}: there is no such directory, and the hub did not give it: {told}"
        ) from None


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
