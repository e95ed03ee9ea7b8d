"""A folder that a run writes to, as a setting names it."""

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
