"""Files of rules that say which class a sample is of, by its tags and the words of its captions.

    otherwise = "nature"              # of samples that no rule is about; none: ""

    [[rule]]                          # the first rule that holds decides
    class = "people"
    words = ["portrait", "人像"]       # holds where a caption has one of these

    [[rule]]
    class = "people"
    tags.image_type = ["portrait"]    # and where the tag has one of these, as a word of it
    letters = 8                       # and where at least so many letters were read in the picture (tag.text)

All that one rule says must hold; rules of one class are alternatives. `source` is a tag too. A tag that the index does
not have, or not yet, is an empty one.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError, model_validator

from producer.operator.lexicon import Lexicon, phrase_fault


class RuleError(ValueError):
    """A file of rules or of a taxonomy is missing or malformed; the message says where."""


class Rule(BaseModel, frozen=True, strict=True, extra="forbid"):
    name: str = Field(alias="class", min_length=1)
    words: tuple[str, ...] = ()
    tags: dict[str, tuple[str, ...]] = {}
    letters: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _says_something(self) -> "Rule":
        if not self.words and not self.tags and not self.letters:
            raise ValueError("holds of everything: give words, tags or letters, or use `otherwise`")
        for phrase in (*self.words, *(word for words in self.tags.values() for word in words)):
            if why := phrase_fault(phrase):
                raise ValueError(f"{phrase!r} {why}")
        if empty := [tag for tag, words in self.tags.items() if not words]:
            raise ValueError(f"tags.{empty[0]}: no words; name at least one")
        return self


class Rules(BaseModel, frozen=True, strict=True, extra="forbid"):
    otherwise: str = ""
    rule: tuple[Rule, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path, setting: str) -> "Rules":
        """The rules in the file at `path`, which `setting` names. RuleError says what is wrong with it, and where."""
        try:
            # From JSON, whose lists are tuples too where pydantic is strict.
            return cls.model_validate_json(json.dumps(read_toml(path, setting)), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
            raise RuleError(f"{setting}: {path}: {where}: {first['msg']}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the index that the rules look at."""
        tags = {tag for rule in self.rule for tag in rule.tags}
        if any(rule.letters for rule in self.rule):
            tags.add("text")
        return tuple("source" if tag == "source" else f"tag.{tag}" for tag in sorted(tags))


def read_toml(path: Path, setting: str) -> dict[str, Any]:
    """The tables of the file at `path`, which `setting` names."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RuleError(f"{setting}: {path}: {error.strerror}; name a file that is there") from None
    except ValueError as error:
        raise RuleError(f"{setting}: {path}: not TOML: {error}") from None


class Ruler:
    """Applies rules to rows of an index."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        phrases: dict[str, int] = {}
        self._words: list[frozenset[int]] = []
        for rule in rules.rule:
            self._words.append(frozenset(phrases.setdefault(word, len(phrases)) for word in rule.words))
        self._captions = Lexicon(phrases)
        self._tags = [
            {tag: Lexicon(dict.fromkeys(words, 0)) for tag, words in rule.tags.items()} for rule in rules.rule
        ]

    def classes(self, table: pa.RecordBatch) -> list[str]:
        """The class of each row of `table`, which has captions and what there is of `Rules.columns`."""
        names = {column.removeprefix("tag."): column for column in table.schema.names if column != "captions"}
        tags = {tag: table[column].to_pylist() for tag, column in names.items()}
        texts = caption_texts(table["captions"])
        letters = [count_letters(text) for text in tags.get("text", ())] or [0] * len(texts)
        return [
            self._class(mine, {tag: values[row] or "" for tag, values in tags.items()}, letters[row])
            for row, mine in enumerate(texts)
        ]

    def _class(self, texts: Sequence[str], tags: dict[str, str], letters: int) -> str:
        found = {one.number for text in texts for one in self._captions.find(text)}
        for rule, words, of_tags in zip(self._rules.rule, self._words, self._tags, strict=True):
            if letters < rule.letters or (words and found.isdisjoint(words)):
                continue
            if all(lexicon.find(tags.get(tag, "")) for tag, lexicon in of_tags.items()):
                return rule.name
        return self._rules.otherwise


def caption_texts(captions: pa.Array) -> list[list[str]]:
    """The texts of each row's captions that curation keeps."""
    return [[one["text"] for one in row or () if one["kept"]] for row in captions.to_pylist()]


def read_lines(text: str | None) -> list[str]:
    """The lines of a tag.text: JSON, a list of lines, each with its text first or under "text"; none if it is empty."""
    if not text:
        return []
    lines = json.loads(text)
    return [
        str(line["text"] if isinstance(line, dict) else line if isinstance(line, str) else line[0]) for line in lines
    ]


def count_letters(text: str | None) -> int:
    """Letters and digits that were read in a picture."""
    return sum(letter.isalnum() for line in read_lines(text) for letter in line)
