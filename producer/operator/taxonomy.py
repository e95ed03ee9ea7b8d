"""Taxonomy: where a sample belongs in a tree of things, by the words of its captions (stage 7).

The tree is a file, such as launch/configs/curation/taxonomy.toml: tables in tables, each a node, with words for it.

    [animal]
    words = ["animal", "动物"]

    [animal.dog]
    words = ["dog", "puppy", "狗"]
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
from pydantic import Field

from producer.digest import hash_file
from producer.operator.judgement import OptIn, batches
from producer.operator.lexicon import Lexicon, phrase_fault
from producer.operator.rule_file import RuleError, caption_texts, read_toml
from producer.scratch import MEMORY, Space

_SETTING = "operators.taxonomy.tree"


class TaxonomyConfig(OptIn, frozen=True, strict=True, extra="forbid"):
    stage: ClassVar[int] = 7
    of = "tag"
    tree: Path | None = None
    depth: int = Field(default=0, ge=0)  # levels of the tree that make a class; 0: all of them

    def operator(self) -> "Taxonomy":
        assert self.tree is not None
        return Taxonomy(self.tree, self.depth)

    def off_reason(self) -> str:
        return "" if self.tree else f"no tree: set {_SETTING} to a file, see launch/configs/curation/taxonomy.toml"

    def content(self) -> dict[str, Any]:
        return {"tree": hash_file(self.tree)} if self.tree else {}


class Node(NamedTuple):
    path: tuple[str, ...]
    words: tuple[str, ...]


class Taxonomy:
    """Tag: the path of the deepest node that a caption has a word of, "animal/dog"; of several the one with the longest
    word, and of those the first in the file. "" where no caption has a word of the tree.
    """

    name = "taxonomy"
    version = 1
    needs: tuple[str, ...] = ("captions",)
    may: tuple[str, ...] = ()

    def __init__(self, tree: Path, depth: int = 0) -> None:
        """Read the tree; RuleError says what is wrong with it, and where."""
        nodes = list(_nodes(tree, read_toml(tree, _SETTING), ()))
        if not any(node.words for node in nodes):
            raise RuleError(f"{_SETTING}: {tree}: has no node with words; write [node] and words = [...]")
        # Parents stand before their children; so of equal words the deepest node's, and of those the first, counts.
        phrases: dict[str, int] = {}
        for number in sorted(range(len(nodes)), key=lambda number: -len(nodes[number].path)):
            for word in nodes[number].words:
                phrases.setdefault(word, number)
        self._lexicon = Lexicon(phrases)
        self._deep = [len(node.path) for node in nodes]
        self._name = ["/".join(node.path[: depth or None]) for node in nodes]

    def tag_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[list[str]]:
        return ([self._class(texts) for texts in caption_texts(part["captions"])] for part in batches(table))

    def _class(self, texts: list[str]) -> str:
        found = [one for text in texts for one in self._lexicon.find(text)]
        if not found:
            return ""
        best = max(found, key=lambda one: (self._deep[one.number], one.length, -one.number))
        return self._name[best.number]


def _nodes(path: Path, table: dict[str, Any], above: tuple[str, ...]) -> Iterator[Node]:
    """The nodes in `table`, each before those below it, in the order of the file."""
    for name, inside in table.items():
        here = (*above, name)
        where = f"{_SETTING}: {path}: {'.'.join(here)}"
        if not isinstance(inside, dict):
            raise RuleError(f"{where}: {inside!r}; a node is a table: write [{'.'.join(here)}] and its words = [...]")
        if "/" in name:
            raise RuleError(f"{where}: a node's name may not have a slash, which parts the names of a path")
        words = inside.get("words", [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise RuleError(f"{where}.words: {words!r}; give a list of words, or leave it out")
        for word in words:
            if why := phrase_fault(word):
                raise RuleError(f"{where}.words: {word!r} {why}")
        yield Node(here, tuple(words))
        yield from _nodes(path, {key: below for key, below in inside.items() if key != "words"}, here)
