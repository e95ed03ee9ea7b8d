"""Phrases found in captions: as whole words, and where a script has no spaces as characters in a row."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Han, kana and Hangul: a phrase that has any of these is found wherever its characters are.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


class Found(NamedTuple):
    """A phrase in a text: the number that the lexicon gives it, and how many characters it has."""

    number: int
    length: int


class Lexicon:
    """Phrases by number. Of phrases that lie in one another the longest is found: "hot dog" is no dog."""

    def __init__(self, phrases: Mapping[str, int]) -> None:
        """`phrases` by number, in any case; the plurals of English nouns come with them."""
        self._words: dict[str, list[tuple[tuple[str, ...], Found]]] = {}
        self._pieces: dict[str, list[tuple[str, Found]]] = {}
        spelt = {tuple(_WORD.findall(normal(phrase))) for phrase in phrases}
        for phrase, number in phrases.items():
            plain = normal(phrase)
            found = Found(number, len(plain))
            if _UNSPACED.search(plain):
                self._pieces.setdefault(plain[0], []).append((plain, found))
                continue
            *head, last = _WORD.findall(plain)
            forms = [form for form in _forms(last) if form == last or (*head, form) not in spelt]
            for form in forms:
                self._words.setdefault((*head, form)[0], []).append(((*head, form), found))
        for of_words in self._words.values():
            of_words.sort(key=lambda one: -len(one[0]))
        for of_pieces in self._pieces.values():
            of_pieces.sort(key=lambda one: -len(one[0]))

    def find(self, text: str) -> list[Found]:
        """The phrases in `text`, each as often as it is there: those of words first, then the others."""
        plain = normal(text)
        found: list[Found] = []
        words = _WORD.findall(plain)
        # Most texts have no phrase in them, and a set says so faster than a walk.
        if not self._words.keys().isdisjoint(words):
            self._walk(words, found)
        if not self._pieces.keys().isdisjoint(plain):
            self._step(plain, found)
        return found

    def _walk(self, words: list[str], found: list[Found]) -> None:
        at = 0
        while at < len(words):
            for phrase, said in self._words.get(words[at], ()):
                if len(phrase) == 1 or tuple(words[at : at + len(phrase)]) == phrase:
                    found.append(said)
                    at += len(phrase) - 1
                    break
            at += 1

    def _step(self, text: str, found: list[Found]) -> None:
        at = 0
        while at < len(text):
            for phrase, said in self._pieces.get(text[at], ()):
                if text.startswith(phrase, at):
                    found.append(said)
                    at += len(phrase) - 1
                    break
            at += 1


def normal(text: str) -> str:
    """`text` as it is compared: compatibility forms and case folded."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def phrase_fault(phrase: str) -> str:
    """Why nothing could ever be found by `phrase`; "" if something can."""
    plain = normal(phrase)
    return "" if _UNSPACED.search(plain) or _WORD.search(plain) else "has no letters"


def _forms(word: str) -> Iterable[str]:
    """A word and, of English nouns, its regular plural."""
    yield word
    if not word.isascii() or not word.isalpha() or len(word) < 3:
        return
    if re.search(r"(?:s|x|z|ch|sh)$", word):
        yield f"{word}es"
    elif re.search(r"[^aeiou]y$", word):
        yield f"{word[:-1]}ies"
    else:
        yield f"{word}s"
