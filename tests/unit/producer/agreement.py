"""How far what is read in a picture of text agrees with what was drawn, in characters, by script."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from producer.operator.reading import Line, read
from producer.synthesize.blueprint import read_layouts
from producer.synthesize.compositional import Compositional, CompositionalConfig
from producer.synthesize.corpus import Corpus, CorpusConfig
from producer.synthesize.pure import Pure, PureConfig
from producer.synthesize.sample import Sample
from producer.synthesize.shards import Way
from producer.synthesize.template import Template, TemplateConfig
from tests.unit.producer.lettering import fonts

# Plain sentences of the 2,500 commonest characters (现代汉语常用字表), and of everyday English.
COMMON = """今天的天气很好，我们一起去公园散步吧。
这家商店每天早上八点开门，晚上九点关门。
请在进门以前先把手机关上，谢谢合作。
老师说明天要考试，大家都回家复习去了。
火车站离这里不远，走路大约需要十分钟。
他每个星期六都去图书馆看书，有时候也写信。
城市里的高楼越来越多，马路也越来越宽了。
这个问题很简单，只要认真想一想就能明白。
妈妈做的饭最好吃，我每次都要吃两大碗。
春天来了，小河边的树都长出了绿色的叶子。
会议改在下午三点开始，地点是二楼的大会议室。
我们的产品质量好，价格低，欢迎大家前来参观。
请注意安全，不要在水边玩，也不要一个人下水。
新的电脑比旧的快得多，工作起来非常方便。
本店所有商品一律八折，活动到月底结束。
这本书讲的是一个普通农民和他的三个孩子的故事。
The library is open from nine in the morning until eight in the evening.
Please keep the door closed, so that the cat does not run into the garden.
Our new summer menu has soup, bread, fresh fish and three kinds of cake.
The next train to the coast leaves from platform four in twenty minutes.
She wrote a long letter to her brother, but she never sent it to him.
Every great journey begins with a small step, and with a good pair of shoes.
Take two cups of flour, one egg and a little milk, and stir them well.
The meeting has been moved to Thursday; bring your notes and a friend.
"""
# How the commonest fonts are drawn: sans and serif.
FONTS = ("SimHei.ttf", "NotoSerifCJKsc-Regular.otf", "NotoSansCJKsc-Regular.otf")
LAYOUTS = Path(__file__).parents[3] / "launch" / "configs" / "layouts"


class Agreement(NamedTuple):
    """Characters that would have to be changed, put in or left out to make what was read what was drawn."""

    edits: int
    drawn: int

    @property
    def share(self) -> float:
        return 1 - self.edits / self.drawn


def ways(folder: Path, seed: int) -> list[Way]:
    """All three, over the common sentences."""
    (folder / "common.txt").write_text(COMMON, "utf-8")
    faces = fonts(*FONTS)
    corpus = Corpus(CorpusConfig(files=(folder / "common.txt",)), faces)
    assert not corpus.dropped and read_layouts(LAYOUTS)
    return [
        Pure(PureConfig(), corpus, faces, seed),
        Compositional(CompositionalConfig(), corpus, faces, seed),
        Template(TemplateConfig(folder=LAYOUTS), corpus, faces, seed),
    ]


def agreements(samples: Iterable[Sample]) -> dict[str, Agreement]:
    """By script of the drawn text: "latin", "chinese"."""
    edits, drawn = Counter[str](), Counter[str]()
    for sample in samples:
        found = _by_text(sample, read(np.asarray(sample.image)))
        for text, seen in zip(sample.truth.texts, found, strict=True):
            said = _plain(text.text)
            script = "latin" if said.isascii() else "chinese"
            edits[script] += distance(said, _plain(seen))
            drawn[script] += len(said)
    return {script: Agreement(edits[script], drawn[script]) for script in drawn}


def _by_text(sample: Sample, lines: list[Line]) -> list[str]:
    """What was read in each text of the truth, line by line; what was read elsewhere counts for the nearest one."""
    drawn = [(number, line) for number, text in enumerate(sample.truth.texts) for line in text.lines]
    outlines = [np.asarray(line.outline, np.float32) for _, line in drawn]
    read_in: list[list[tuple[float, str]]] = [[] for _ in drawn]
    for line in lines:
        x, y = np.mean(line.corners, axis=0) * sample.image.size
        near = int(np.argmax([cv2.pointPolygonTest(one, (float(x), float(y)), True) for one in outlines]))
        along = outlines[near][1] - outlines[near][0]
        read_in[near].append((float(np.dot(along, (x, y))), line.text))
    return [
        "".join(said for (of, _), seen in zip(drawn, read_in, strict=True) if of == number for _, said in sorted(seen))
        for number in range(len(sample.truth.texts))
    ]


def _plain(text: str) -> str:
    """Without spaces, which no recogniser gives back, and full-width marks as their like: both look the same."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def distance(one: str, other: str) -> int:
    """Levenshtein's."""
    row = list(range(len(other) + 1))
    for number, char in enumerate(one, 1):
        before, row = row, [number]
        for place, against in enumerate(other, 1):
            row.append(min(row[-1] + 1, before[place] + 1, before[place - 1] + (char != against)))
    return row[-1]
