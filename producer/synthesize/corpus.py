"""The text that is drawn: paragraphs of a corpus, chosen so that rare characters are seen.

A paragraph is a line of a UTF-8 file. It is kept whole or dropped whole: one character that no font can draw together
with the others drops it (report section 3.4.1), and is counted.
"""

import re
import unicodedata
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from producer.synthesize.breaking import is_wide
from producer.synthesize.fonts import Fonts
from producer.synthesize.sample import SynthesisError

_SENTENCE = re.compile(r".+?(?:[。！？；]+[”’」』）]*|[.!?;]+[\"”’)]*(?=\s|$)|$)")
_CLAUSE = re.compile(r".+?(?:[，。！？；、：]+[”’」』）]*|[,.!?;:]+[\"”’)]*(?=\s|$)|$)")
# Marks that a short text does not end with.
_TRAILING = "，、；：,;:—"


class CorpusConfig(BaseModel, frozen=True, strict=True, extra="forbid"):
    files: tuple[Path, ...] = Field(min_length=1)  # UTF-8, a paragraph a line
    max_characters: int = Field(default=120, ge=1)  # of a passage, Latin letters half; more is cut at sentence ends
    # Share of samples whose passage is found by a character drawn evenly from all that occur, so that each is seen in
    # at least this share over their number; the others are drawn evenly from the passages.
    rare_share: float = Field(default=0.5, ge=0, le=1)


class Passage(NamedTuple):
    """Text to draw, and the faces that can."""

    text: str
    faces: tuple[int, ...]
    seed_char: str = ""  # the character it was found by


class Corpus:
    """The passages of a corpus that the fonts can draw; `dropped` counts the paragraphs left out by reason.

    Raises SynthesisError where a file cannot be read, all files are empty, or no font draws any paragraph.
    """

    def __init__(self, config: CorpusConfig, fonts: Fonts) -> None:
        self._config = config
        self.dropped: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        paragraphs = [text for path in config.files for text in _paragraphs(path)]
        if not paragraphs:
            raise SynthesisError(
                f"corpus.files: {', '.join(map(str, config.files))}: no text in them; a paragraph a line, in UTF-8"
            )
        self.passages = tuple(passage for text in paragraphs for passage in self._passages(text, fonts))
        if not self.passages:
            often = ", ".join(f"U+{ord(char):04X} {char!r}" for char, _ in self._missing.most_common(5))
            raise SynthesisError(
                f"corpus.files: none of {len(paragraphs)} paragraphs can be used: "
                + "; ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
                + (f"; first of all {often}; add fonts that have them" if often else "")
            )

    @cached_property
    def _holders(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number, passage in enumerate(self.passages):
            for char in sorted(set(passage.text) - {" "}):
                found.setdefault(char, []).append(number)
        return dict(sorted(found.items()))

    @cached_property
    def alphabet(self) -> tuple[str, ...]:
        """Every character that occurs in a passage."""
        return tuple(self._holders)

    def draw(self, rng: np.random.Generator) -> Passage:
        """A passage, rare characters favoured as `rare_share` says."""
        if rng.random() >= self._config.rare_share:
            return self.passages[rng.integers(len(self.passages))]
        char = self.alphabet[rng.integers(len(self.alphabet))]
        holders = self._holders[char]
        return self.passages[holders[rng.integers(len(holders))]]._replace(seed_char=char)

    def phrase(self, rng: np.random.Generator, most: int) -> Passage:
        """A short text of at most `most` characters (a Latin letter counts half): whole clauses where they fit.

        It is cut from one passage, about the character that the passage was found by.
        """
        passage = self.draw(rng)
        clauses = [found[0].strip() for found in _CLAUSE.finditer(passage.text) if found[0].strip()]
        first = next((n for n, clause in enumerate(clauses) if passage.seed_char in clause), 0)
        if not passage.seed_char:
            first = int(rng.integers(len(clauses)))
        text = _cut(clauses[first], most, passage.seed_char)
        if text == clauses[first]:
            for clause in clauses[first + 1 :]:
                longer = text + ("" if is_wide(text[-1]) else " ") + clause
                if extent(longer) > most:
                    break
                text = longer
        return passage._replace(text=text.rstrip(_TRAILING) or text)

    def _passages(self, text: str, fonts: Fonts) -> list[Passage]:
        faces = fonts.drawing(text)
        if not faces:
            first = max((face.missing(text) for face in fonts.faces), key=text.find)
            self._missing[first] += 1
            self.dropped["hold a character that no font draws with the others"] += 1
            return []
        most = self._config.max_characters
        whole: list[str] = []
        for sentence in (found[0].strip() for found in _SENTENCE.finditer(text)):
            joined = whole[-1] + ("" if is_wide(whole[-1][-1]) else " ") + sentence if whole else sentence
            if whole and extent(joined) <= most:
                whole[-1] = joined
            elif sentence:
                whole.append(sentence)
        if any(extent(sentence) > most for sentence in whole):
            self.dropped[f"have a sentence of more than {most} characters"] += 1
            return []
        return [Passage(part, faces) for part in whole]


def extent(text: str) -> float:
    """How long `text` is in full characters, a Latin letter or a space counting half."""
    return sum(1.0 if is_wide(char) else 0.5 for char in text)


def _paragraphs(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise SynthesisError(f"corpus.files: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SynthesisError(f"corpus.files: {path}: not UTF-8 at byte {error.start}; convert it") from None
    # NFC: an accent that follows its letter becomes one character with it, which a font can draw as one glyph.
    return [text for text in (" ".join(unicodedata.normalize("NFC", line).split()) for line in lines) if text]


def _cut(clause: str, most: int, keep: str) -> str:
    """`clause` shortened to `most`, at a word where it has spaces, with the character `keep` still in it."""
    if extent(clause) <= most:
        return clause
    units = clause.split(" ") if " " in clause else list(clause)
    glue = " " if " " in clause else ""
    begin = next((n for n, unit in enumerate(units) if keep in unit), 0) if keep else 0
    end = begin + 1
    while end < len(units) and extent(glue.join(units[begin : end + 1])) <= most:
        end += 1
    while begin and extent(glue.join(units[begin - 1 : end])) <= most:
        begin -= 1
    return glue.join(units[begin:end])
