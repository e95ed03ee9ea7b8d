"""Captions as they lie beside an image: NAME.txt is the raw caption, NAME.json may hold others by split."""

import json
from collections.abc import Callable
from typing import NamedTuple

# No caption that helps a model is longer; a text encoder sees 1,024 tokens.
MAX_BYTES = 64 << 10

# What may stand in a caption besides printable characters.
_LAYOUT = frozenset("\n\r\t")


class Captions(NamedTuple):
    """Captions by split, and why others beside them cannot be used."""

    texts: dict[str, str]
    faults: tuple[str, ...] = ()

    def __or__(self, other: "Captions") -> "Captions":
        return Captions(self.texts | other.texts, self.faults + other.faults)


def read_captions(ending: str, size: int, read: Callable[[], bytes]) -> Captions:
    """What a file of `size` bytes with `ending` txt or json says; `read` is called only if it is not too long."""
    limit = MAX_BYTES * (1 if ending == "txt" else 16)
    if size > limit:
        return Captions({}, (f"{ending} caption of {size} bytes, the limit is {limit}",))
    return read_text("raw", read()) if ending == "txt" else _from_json(read())


def read_text(split: str, raw: bytes) -> Captions:
    """The caption `raw` of `split`."""
    if len(raw) > MAX_BYTES:
        return Captions({}, (f"{split} caption of {len(raw)} bytes, the limit is {MAX_BYTES}",))
    try:
        return checked(split, raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Captions({}, (f"{split} caption is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}",))


def _from_json(raw: bytes) -> Captions:
    """The captions of `{"captions": {split: text}}`; other JSON is somebody else's and holds none."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return Captions({}, (f"json cannot be read: {error}",))
    listed = said.get("captions", {}) if isinstance(said, dict) else {}
    if not isinstance(listed, dict):
        return Captions({}, ("json: captions is no table of split to text",))
    found = Captions({})
    for split, text in sorted(listed.items()):
        found |= checked(split, text) if isinstance(text, str) else Captions({}, ("a caption in json is no text",))
    return found


def checked(split: str, text: str) -> Captions:
    """The caption `text` of `split`, if it can be used: not empty or endless, no control characters."""
    text = text.strip()
    if not text:
        return Captions({}, (f"{split} caption is empty",))
    try:
        size = len(text.encode())
        split.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, which no encoding of text can hold.
        return Captions({}, ("a caption holds half a surrogate pair",))
    if size > MAX_BYTES:
        return Captions({}, (f"{split} caption of {size} bytes, the limit is {MAX_BYTES}",))
    control = next((char for char in text if not char.isprintable() and ord(char) < 0xA0 and char not in _LAYOUT), None)
    if control is not None:
        return Captions({}, (f"{split} caption holds the control character U+{ord(control):04X}",))
    return Captions({split: text})
