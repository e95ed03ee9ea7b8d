"""Captions that stand under many pictures: sketches as they are published, clusters, and what becomes of samples."""

from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from producer.index import Index
from producer.minhash import WIDTH, alike, sketches
from producer.operator.caption_duplicate import CaptionDuplicate, CaptionDuplicateConfig
from tests.unit.producer.test_curation_engine import run
from tests.unit.producer.test_scoring import jpeg, write

WORDS = np.asarray([f"{a}{b}" for a in ("har", "boa", "gul", "clo", "hou") for b in ("bour", "ts", "ls", "uds", "ses")])


def sentence(draw: np.random.Generator) -> str:
    return " ".join(draw.choice(WORDS, 30))


def pieces(text: str) -> set[str]:
    return {text[start : start + 8] for start in range(len(text) - 7)}


def test_sketches_agree_in_the_share_of_pieces_that_texts_share_and_as_datasketch_says() -> None:
    draw = np.random.default_rng(0)
    ours, theirs, true = [], [], []
    for _ in range(60):
        one = sentence(draw)
        words = one.split()
        words[: draw.integers(0, 20)] = draw.choice(WORDS, 7)
        other = " ".join(words)
        first, second = sketches([one, other])
        ours.append((first == second).mean())
        each = [MinHash(WIDTH) for _ in range(2)]
        for text, sketch in zip((one, other), each, strict=True):
            sketch.update_batch([piece.encode() for piece in pieces(text)])
        theirs.append(each[0].jaccard(each[1]))
        true.append(len(pieces(one) & pieces(other)) / len(pieces(one) | pieces(other)))
    # The error of 32 numbers is 0.09 at most; over 60 pairs a hundredth is left.
    assert abs(np.mean(ours) - np.mean(true)) < 0.03
    assert np.std(np.subtract(ours, true)) < 1.3 * np.std(np.subtract(theirs, true)) < 0.13


def test_case_digits_and_white_space_make_no_difference_and_neighbours_make_none() -> None:
    one, other, short, none = sketches(["IMG 1234 of a Shop", "img  5678 of a shop ", "x", ""])
    assert (one == other).all() and not (one == short).all()
    assert (short == sketches(["x"])[0]).all() and (none == sketches([""])[0]).all()
    assert sketches([]).shape == (0, WIDTH)


def test_of_a_template_under_many_pictures_the_oldest_captions_are_kept() -> None:
    draw = np.random.default_rng(1)
    texts = [f"Buy poster number {number} in our shop, framed or not" for number in range(30)]
    texts += [sentence(draw) for _ in range(30)]
    generation = np.where(np.arange(60) >= 25, 1, 2)
    said = CaptionDuplicate(CaptionDuplicateConfig(max=10)).crowds(sketches(texts), generation)
    assert said.score[:30].tolist() == [30] * 30 and (said.score[30:] == 1).all()
    assert np.flatnonzero(said.kept[:30]).tolist() == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29] and said.kept[30:].all()


def test_a_crowd_costs_no_more_pairs_than_its_size() -> None:
    same = np.repeat(sketches(["the same words under everything"]), 50_000, axis=0)
    assert sum(len(one) for one, _ in alike(same, 0.8)) < 16 * 50_000


def test_beyond_the_first_ones_captions_are_not_trained_on_and_their_samples_are_dropped(
    tmp_path: Path,
) -> None:
    names = ("astronaut", "chelsea", "coffee", "moon", "rocket")
    pictures = {name: (jpeg(name), f"Poster {number}, 40 x 60 cm, on paper") for number, name in enumerate(names)}
    source = write(tmp_path / "raw", pictures | {"own": (jpeg("camera"), "A man films on a lawn.")})
    funnel = run(source, tmp_path, {"caption_duplicate": {"max": 2}})
    assert funnel.dropped["caption_duplicate"] == 3
    assert funnel.seen == 6 == funnel.kept + sum(funnel.dropped.values())
    rows = {row["key"]: row for row in Index.open(tmp_path / "index").table.to_pylist()}
    assert [row["kept"] for row in rows.values()] == [True, True, False, False, True, False]
    moon = rows["a/moon"]
    assert moon["score.caption_duplicate"] == [5.0] and moon["verdict.caption_duplicate"] is False
    assert moon["reason"] == "one of 5 captions that are nearly the same, above 2"
    assert not moon["captions"][0]["kept"] and moon["captions"][0]["reason"] == f"caption_duplicate: {moon['reason']}"
    assert rows["a/own"]["score.caption_duplicate"] == [1.0] and rows["a/own"]["captions"][0]["kept"]


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_and_one_caption_alone_are_in_no_crowd(number: int) -> None:
    said = CaptionDuplicate(CaptionDuplicateConfig()).crowds(sketches(["words"] * number), np.ones(number, np.int64))
    assert said.score.tolist() == [1.0] * number and said.kept.all()
