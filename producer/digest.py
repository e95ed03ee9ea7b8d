"""Content hashes of files and folders: what fingerprints are made of."""

import hashlib
from pathlib import Path


def hash_file(path: Path) -> str:
    """SHA-256 of the file at `path`, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """SHA-256, in hex, over the names and contents of the files directly in `folder`; hidden ones do not count."""
    seen = hashlib.sha256()
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")):
        seen.update(f"{path.name} {hash_file(path)}\n".encode())
    return seen.hexdigest()
