"""Character rarity: how rare the rarest letters of a sample's text are in the whole set (stage 7).

Of what pictures say, few characters are most: Chinese has thousands that a model meets too seldom to learn to draw. The
score finds the samples that have them; `rarity` sorts it into classes, for a recipe to weigh.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa

from producer.operator.judgement import Judgements, OptIn, batches
from producer.operator.rule_file import caption_texts, read_lines
from producer.scratch import MEMORY, Space

# Of a sample's distinct characters: one alone is too often misread, and more would favour long texts.
_RAREST = 3
# What captions quote, as annotation and synthesis write it.
_QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d|\u300c([^\u300d]+)\u300d|\u300e([^\u300f]+)\u300f')


class CharacterRarityConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 7

    def operator(self) -> "CharacterRarity":
        return CharacterRarity()


class CharacterRarity:
    """Score: bits, from 0. A character has the binary logarithm of one over the share of the samples with text that
    have it: 1 for one in half of them, 10 for one in a thousandth. The score is the mean over the 3 rarest distinct
    letters of the sample, fewer where it has fewer. Higher means rarer. It drops nothing.

    A sample's text is what was read in its picture and what its captions quote.
    """

    name = "character_rarity"
    version = 1
    needs: tuple[str, ...] = ("captions",)
    may: tuple[str, ...] = ("tag.text",)

    def judge_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[Judgements]:
        seen, whole = Counter[str](), 0
        for part in batches(table):
            for letters in _texts(part):
                seen.update(letters)
                whole += bool(letters)
        bits = {letter: float(np.log2(whole / count)) for letter, count in seen.items()}
        # Once more over the table, which costs less than holding every sample's letters.
        for part in batches(table):
            score = np.asarray([_mean_of_rarest([bits[letter] for letter in letters]) for letters in _texts(part)])
            verdict = np.where(np.isnan(score), -1, 1).astype(np.int8)
            yield Judgements(score, verdict, pa.array([""] * len(score), pa.string()))


def _texts(part: pa.RecordBatch) -> Iterator[set[str]]:
    """The letters of each row's text."""
    read = part["tag.text"].to_pylist() if "tag.text" in part.schema.names else [""] * part.num_rows
    for lines, captions in zip(read, caption_texts(part["captions"]), strict=True):
        yield _letters([*read_lines(lines), *(quote for text in captions for quote in quotes(text))])


def _mean_of_rarest(bits: list[float]) -> float:
    rarest = sorted(bits, reverse=True)[:_RAREST]
    return sum(rarest) / len(rarest) if rarest else float("nan")


def quotes(caption: str) -> list[str]:
    """What `caption` has in quotation marks."""
    return [next(filter(None, found)) for found in _QUOTED.findall(caption)]


def _letters(texts: list[str]) -> set[str]:
    folded = "".join(unicodedata.normalize("NFKC", text).casefold() for text in texts)
    return {letter for letter in folded if letter.isalpha()}
