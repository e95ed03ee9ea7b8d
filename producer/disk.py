"""Folders that settings name, and what must survive a power cut."""

import os
from pathlib import Path


class FolderError(ValueError):
    """A folder cannot be made or written to; the message names the setting and the fix."""


def make_folder(setting: str, folder: Path) -> None:
    """Have `folder`, which `setting` names or decides. FolderError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be made ({error.strerror})"
    else:
        if os.access(folder, os.W_OK | os.X_OK):
            return
        why = "cannot be written to"
    raise FolderError(f"{setting}: the folder {folder} {why}; give one on a disk that can be written to")


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
