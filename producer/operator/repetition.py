"""Text that goes round in circles, as language models do when they lose the thread."""

import re
from collections import Counter

import numpy as np

# Chinese characters and kana stand for themselves, everything else for words.
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_WIDE}]|[^\W{_WIDE}]+")
_SENTENCE = re.compile(r"[.!?;。！？；\n]+")
_LETTERS = re.compile(r"([^\W\d_]{1,8}?)\1{9,}")
_MARKS = re.compile(r"([^\w\s])\1{39,}")
# Tokens of the longest loop looked for, and of the beginning that is looked at.
_PERIOD, _READ = 64, 4096


def repetition(text: str) -> str:
    """What `text` repeats, "" if nothing. Any of:

    - a token 8 times in a row, 2 or 3 tokens 5 times, 4 to 64 tokens 2.75 times, rounded up to whole tokens: rhymes
      and slogans repeat less,
    - the same sentence of 4 words or 6 characters 3 times, in a row or not,
    - up to 8 letters 10 times, or the same mark 40 times, without a space.
    """
    tokens = _TOKEN.findall(text.lower())[:_READ]
    found = _loop(tokens)
    if found:
        return " ".join(found)
    long = [token for token in tokens if len(token) >= 10 and len(set(token)) <= 8]
    glued = next(filter(None, map(_LETTERS.search, long)), None) or _MARKS.search(text)
    return glued[1] if glued else _sentence(text)


def _loop(tokens: list[str]) -> list[str]:
    """The tokens that are repeated in a row, none if there are none."""
    number: dict[str, int] = {}
    numbers = np.asarray([number.setdefault(token, len(number)) for token in tokens], np.int32)
    # What is repeated adds no token that is not there yet, so most texts have too few repeats for any loop.
    spare = len(tokens) - len(number)
    for period in range(1, min(_PERIOD, spare * 4 // 7) + 1):
        # A run of r places that equal the one a period before holds 1 + r / period repeats; the last may be cut.
        need = 7 if period == 1 else 4 * period if period < 4 else 2 * period - period // 4
        if spare < need:
            continue
        same = np.concatenate([[False], numbers[period:] == numbers[:-period], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        runs = edges[1::2] - edges[::2]
        if len(runs) and runs.max() >= need:
            start = int(edges[::2][runs.argmax()])
            return tokens[start : start + period]
    return []


def _sentence(text: str) -> str:
    said = Counter(" ".join(one.split()).lower() for one in _SENTENCE.split(text))
    for sentence, times in said.most_common(1 if len(said) == 1 else 3):
        tokens = _TOKEN.findall(sentence)
        if times >= 3 and len(tokens) >= (6 if re.match(f"[{_WIDE}]", sentence) else 4):
            return sentence
    return ""
