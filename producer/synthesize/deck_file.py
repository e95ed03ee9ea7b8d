"""A .pptx opened with care: decks come from anywhere, and are zips of XML."""

import zipfile
from pathlib import Path
from typing import Any

from producer.synthesize.sample import SynthesisError

# Beyond these a file is no deck of slides but an attack on memory: decks full of photographs have some 100 MB.
_MOST_BYTES = 256 << 20  # unfolded: python-pptx reads all of it
_MOST_XML = 16 << 20  # of one part
_MOST_PARTS = 20_000


def open_deck(path: Path) -> Any:
    """The python-pptx presentation at `path`; SynthesisError says why it is refused or cannot be read."""
    # Here, since it takes a while and only decks need it.
    import pptx

    _check_zip(path)
    try:
        deck = pptx.Presentation(str(path))
        outside = sorted(
            relation.target_ref
            for relation in deck.part.package.iter_rels()
            # Links to click are text that nobody follows; all else would be part of the picture.
            if relation.is_external and not relation.reltype.endswith("/hyperlink")
        )
        _ = [layout.name for master in deck.slide_masters for layout in master.slide_layouts], len(deck.slides)
    except Exception as error:  # python-pptx and lxml raise whatever a broken part leads them to
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise SynthesisError(f"template.folder: {path}: not a deck that can be read: {said}; save it again") from None
    if outside:
        raise SynthesisError(
            f"template.folder: {path}: refused, parts of it lie elsewhere, like {outside[0][:200]!r}; embed them"
        )
    return deck


def _check_zip(path: Path) -> None:
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise SynthesisError(f"template.folder: {path}: {size} bytes, the limit is {_MOST_BYTES}; make it smaller")
        with zipfile.ZipFile(path) as zip:
            parts = zip.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        if isinstance(error, SynthesisError):
            raise
        raise SynthesisError(f"template.folder: {path}: not a .pptx, which is a zip: {error}") from None
    except OSError as error:
        raise SynthesisError(f"template.folder: {path}: {error.strerror}") from None
    if len(parts) > _MOST_PARTS:
        raise SynthesisError(f"template.folder: {path}: refused, {len(parts)} parts, the limit is {_MOST_PARTS}")
    largest = max(
        (part for part in parts if part.filename.endswith((".xml", ".rels"))), key=lambda p: p.file_size, default=None
    )
    if largest is not None and largest.file_size > _MOST_XML:
        raise SynthesisError(
            f"template.folder: {path}: refused, {largest.filename} unfolds to {largest.file_size} bytes, the limit is "
            f"{_MOST_XML}"
        )
    whole = sum(part.file_size for part in parts)
    if whole > _MOST_BYTES:
        raise SynthesisError(
            f"template.folder: {path}: refused, it unfolds to {whole} bytes, the limit is {_MOST_BYTES}"
        )
