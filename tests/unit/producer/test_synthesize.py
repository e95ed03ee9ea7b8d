"""Pure rendering and what it stands on: fonts, line breaking, rare characters, the same bytes again."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from producer.source.store import LocalStore
from producer.source.tars import Tars
from producer.synthesize.breaking import break_lines, pieces
from producer.synthesize.chance import chance
from producer.synthesize.colour import PALETTE, contrast, ground_and_ink
from producer.synthesize.corpus import Corpus, CorpusConfig, extent
from producer.synthesize.fonts import Face, Fonts, FontsConfig
from producer.synthesize.layout import fit
from producer.synthesize.pure import Pure, PureConfig
from producer.synthesize.sample import Sample, SynthesisError, Truth
from producer.synthesize.shards import ShardsConfig, begun, write_shards
from producer.synthesize.wording import displayed, quote
from tests.unit.producer.agreement import ways
from tests.unit.producer.lettering import TEXT, corpus, fonts, lying_font, package_fonts

HAN = "床前明月光，疑是地上霜。（举头望明月），“低头思故乡”……——"


def pure(folder: Path, seed: int = 0, **settings: object) -> Pure:
    faces = fonts()
    return Pure(
        PureConfig.model_validate({"resolution": 256, "chinese_captions": 0.0} | settings),
        corpus(folder, faces),
        faces,
        seed,
    )


def test_a_character_counts_as_drawn_only_if_it_leaves_ink_of_its_own(tmp_path: Path) -> None:
    lying_font(tmp_path / "liar.ttf")
    face = Fonts(FontsConfig(folder=tmp_path)).faces[0]
    assert [face.draws(char) for char in "ABCD "] == [True, False, False, False, True]
    assert face.missing("A AB") == "B" and face.name == "Liar Regular"


def test_text_that_shaping_would_change_counts_as_not_drawn() -> None:
    face = Face(package_fonts("matplotlib", "mpl-data/fonts/ttf") / "DejaVuSans.ttf", handwritten=False)
    drawn = ["Office (fi, 9:00)", "Ω русский", "naïve café"]
    assert [face.missing(text) for text in drawn] == ["", "", ""]
    # Letters that join, that run from right to left, and a mark that no letter has been composed with.
    assert [face.missing(text) for text in ("سلام", "שלום", "x\u0323y")] == ["س", "ש", "\u0323"]
    assert all(face.draws(char) for char in "سשx")


def test_an_accent_behind_its_letter_is_one_character_of_the_corpus(tmp_path: Path) -> None:
    made = corpus(tmp_path, fonts("NotoSansCJKsc-Regular.otf"), "Cafe\u0301 au lait.\n")
    assert [passage.text for passage in made.passages] == ["Caf\u00e9 au lait."]


def test_a_paragraph_with_one_character_that_no_font_draws_is_dropped_whole(tmp_path: Path) -> None:
    made = corpus(tmp_path, fonts(), TEXT + "这一段有一个\U000e0041不能画的字。它的第二句很好。\nNul\x00 here.\n")
    assert len(made.passages) == len(TEXT.splitlines()) and not any("第二句" in p.text for p in made.passages)
    assert made.dropped == {"hold a character that no font draws with the others": 2}


def test_a_paragraph_longer_than_a_passage_is_cut_at_its_sentences(tmp_path: Path) -> None:
    made = corpus(
        tmp_path, fonts(), "一二三四。五六七八！九十。\nOne two. Three four? Five.\n" + "长" * 13, max_characters=12
    )
    assert [p.text for p in made.passages] == ["一二三四。五六七八！", "九十。", "One two. Three four?", "Five."]
    assert made.dropped == {"have a sentence of more than 12 characters": 1}


def test_a_character_that_occurs_once_in_a_thousand_paragraphs_is_seen(tmp_path: Path) -> None:
    made = corpus(tmp_path, fonts(), "大家都在说这句话。\n" * 999 + "貔貅来了。\n")
    seen = Counter("貔" in made.draw(chance(0, "test", n)).text for n in range(400))
    # Half the draws go by character, four of the thirteen characters are in the rare paragraph alone.
    assert 400 * 0.5 * 4 / 13 * 0.6 < seen[True] < 400 * 0.5 * 4 / 13 * 1.5
    even = corpus(tmp_path, fonts(), "大家都在说这句话。\n" * 999 + "貔貅来了。\n", rare_share=0.0)
    assert sum("貔" in even.draw(chance(0, "test", n)).text for n in range(400)) < 5


def test_a_phrase_is_short_and_holds_the_character_it_was_drawn_for(tmp_path: Path) -> None:
    made = corpus(tmp_path, fonts(), rare_share=1.0)
    for n in range(200):
        phrase = made.phrase(np.random.default_rng(n), 12)
        assert extent(phrase.text) <= 12 and phrase.text in TEXT
        assert phrase.seed_char in phrase.text or phrase.seed_char in "，、：,:"


def test_marks_that_close_begin_no_line_and_marks_that_open_end_none() -> None:
    for width in range(2, 12):
        lines = break_lines(HAN, width, len)
        if lines:
            assert "".join(lines) == HAN
            assert not {line[0] for line in lines} & set("，。）”…—") and not {line[-1] for line in lines} & set("（“")


def test_latin_words_stay_whole_and_a_word_too_long_says_no() -> None:
    assert break_lines("the quick brown fox", 9, len) == ["the quick", "brown fox"]
    assert break_lines("用Python写well-known程序", 6, len) == ["用", "Python", "写well-", "known程", "序"]
    assert break_lines("incomprehensible", 9, len) is None


@given(st.text(alphabet=st.sampled_from("ab -，。（）字漢！\"'1"), min_size=1, max_size=60).map(str.strip).filter(bool))
def test_pieces_are_the_text_and_lines_lose_nothing_but_spaces(text: str) -> None:
    assert "".join(pieces(text)) == text
    lines = break_lines(text, 20, len)
    assert lines is None or "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_the_largest_size_that_fits_is_taken_and_none_where_none_does() -> None:
    face = fonts().faces[0]
    block = fit(TEXT.splitlines()[0], face, 300, 200, sizes=(10, 90), leading=1.3)
    assert block and block.height <= 200 and 30 < block.size < 90
    larger = fit(TEXT.splitlines()[0], face, 300, 200, sizes=(block.size + 1, 90), leading=1.3)
    assert larger is None


def test_the_truth_says_where_the_ink_is(tmp_path: Path) -> None:
    way = pure(tmp_path)
    for index in range(12):
        made = way.make(index)
        (text,) = made.truth.texts
        assert made.image.size == (made.truth.width, made.truth.height)
        assert "".join(line.text for line in text.lines).replace(" ", "") == text.text.replace(" ", "")
        pixels = np.asarray(made.image).astype(int)
        inked = np.abs(pixels - pixels[0, 0]).sum(-1) > 0
        for line in text.lines:
            (left, top), (right, bottom) = (tuple(map(int, line.outline[n])) for n in (0, 2))
            assert 0 <= left < right <= made.image.width and 0 <= top < bottom <= made.image.height
            assert inked[top:bottom, left:right].any()
            inked[top:bottom, left:right] = False
        assert not inked.any()
        assert text.ink in made.caption and text.ground in made.caption and quote(text.text) in made.caption


def test_ink_can_be_read_on_every_ground() -> None:
    pairs = [ground_and_ink(np.random.default_rng(n), 3.0) for n in range(300)]
    assert min(contrast(ground.rgb, ink.rgb) for ground, ink in pairs) >= 3.0
    assert {ground for ground, _ in pairs} == set(PALETTE)


def test_captions_are_the_reports_in_two_languages() -> None:
    ivory, red, blue = (next(one for one in PALETTE if one.name == name) for name in ("ivory", "red", "blue"))
    said = [
        displayed(ground, red, "福", language, handwritten=handwritten)
        for ground, language, handwritten in (
            (ivory, "en", False),
            (blue, "en", True),
            (ivory, "zh", False),
            (blue, "zh", True),
        )
    ]
    assert said == [
        'On an ivory background, displaying red text "福".',
        'The background is blue, and the red handwritten text is "福".',
        "在象牙色的背景上，展示着红色的文字“福”。",
        "背景为蓝色，红色的手写文字是“福”。",
    ]


def test_text_with_quotation_marks_is_quoted_by_others() -> None:
    assert [quote('so "called"'), quote("所谓“好”", "zh"), quote("所谓“好”")] == [
        '“so "called"”',
        "「所谓“好”」",
        '"所谓“好”"',
    ]


def test_a_share_of_captions_is_chinese_and_handwriting_is_called_so(tmp_path: Path) -> None:
    faces = fonts(handwritten=("SimHei*",))
    way = Pure(PureConfig(resolution=128, least_size=8, chinese_captions=0.5), corpus(tmp_path, faces), faces, 0)
    made = [way.make(n) for n in range(24)]
    chinese = [one.caption.startswith("背景为") and "手写文字是" in one.caption for one in made]
    english = ["handwritten text is" in one.caption for one in made]
    assert 4 < sum(chinese) < 20 and sum(english) == 24 - sum(chinese)
    assert all(one.truth.texts[0].handwritten for one in made)


def test_a_sample_follows_from_seed_and_index_alone(tmp_path: Path) -> None:
    one, again, other = pure(tmp_path), pure(tmp_path), pure(tmp_path, seed=1)
    forward = [one.make(n) for n in range(4)]
    backward = [again.make(n) for n in (3, 2, 1, 0)][::-1]
    assert [(s.image.tobytes(), s.caption, s.truth) for s in forward] == [
        (s.image.tobytes(), s.caption, s.truth) for s in backward
    ]
    assert other.make(0).image.tobytes() != forward[0].image.tobytes()


PROGRAM = """
import sys
from pathlib import Path
from tests.unit.producer.test_synthesize import digest
print(digest(Path(sys.argv[1])))
"""


def digest(folder: Path) -> str:
    """Of all that the three ways make of an index: pictures, captions and truths."""
    made = [way.make(index) for way in ways(folder, 3) for index in (0, 5)]
    said = "".join(one.caption + one.truth.model_dump_json() for one in made)
    return hashlib.sha256(b"".join(one.image.tobytes() for one in made) + said.encode()).hexdigest()


def test_another_process_makes_the_same_bytes_in_every_way(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, check=True, timeout=240, capture_output=True, text=True)
    assert done.stdout.strip() == digest(tmp_path)


def test_tars_are_read_as_a_source_and_are_the_same_however_they_are_divided(tmp_path: Path) -> None:
    whole = ShardsConfig(out=tmp_path / "whole", shard=2)
    part = ShardsConfig(out=tmp_path / "part", shard=2, first=2)
    way = pure(tmp_path)
    written = list(write_shards(way, 4, whole, keep=3))
    paths = [one.path for one in written]
    assert [(one.samples, len(one.first)) for one in written] == [(2, 2), (2, 1)]
    assert [path.name for path in paths] == ["pure-00000.tar", "pure-00001.tar"]
    assert [one.path.read_bytes() for one in write_shards(way, 2, part)] == [paths[1].read_bytes()]
    # Made again they are the same files, so that nothing is scored again.
    stamps = [path.stat().st_mtime_ns for path in paths]
    list(write_shards(way, 4, whole))
    assert [path.stat().st_mtime_ns for path in paths] == stamps and len(list((tmp_path / "whole").iterdir())) == 2
    reader = Tars(LocalStore(tmp_path / "whole"))
    samples = [sample for shard in reader.shards() for sample in reader.samples(shard)]
    assert len(samples) == 4 and {sample.captions["raw"] for sample in samples} == {
        way.make(n).caption for n in range(4)
    }
    with tarfile.open(paths[0]) as tar:
        stored = tar.extractfile("pure-000000001.json")
        assert stored
        assert Truth.model_validate_json(json.dumps(json.load(stored)["truth"])) == way.make(1).truth


def test_who_looks_on_sees_a_tar_grow(tmp_path: Path) -> None:
    made, seen = pure(tmp_path), list[dict[str, tuple[int, int]]]()

    class Watched:
        name = "pure"

        def make(self, index: int) -> Sample:
            seen.append(begun(tmp_path / "out"))
            return made.make(index)

    list(write_shards(Watched(), 4, ShardsConfig(out=tmp_path / "out")))
    assert [set(one) for one in seen] == [{".pure-00000.tar.part"}] * 4
    assert len({str(one) for one in seen}) > 1 and begun(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no text"),
        (b" \n\n", "no text"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        ("\U000e0041".encode(), r"none of 1 paragraphs can be used.*U\+E0041.*add fonts"),
    ],
)
def test_a_corpus_that_gives_nothing_says_why(tmp_path: Path, text: bytes, said: str) -> None:
    (tmp_path / "text.txt").write_bytes(text)
    with pytest.raises(SynthesisError, match=said):
        Corpus(CorpusConfig(files=(tmp_path / "text.txt",)), fonts())


def test_missing_files_folders_and_fonts_are_named(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match=r"absent\.txt: No such file"):
        Corpus(CorpusConfig(files=(tmp_path / "absent.txt",)), fonts())
    with pytest.raises(SynthesisError, match="absent is no folder"):
        Fonts(FontsConfig(folder=tmp_path / "absent"))
    (tmp_path / "broken.ttf").write_bytes(b"no font at all")
    with pytest.raises(SynthesisError, match=r"broken\.ttf: not a font"):
        Fonts(FontsConfig(folder=tmp_path))
    with pytest.raises(SynthesisError, match=r"holds 1 fonts, none of them named like fonts\.only"):
        Fonts(FontsConfig(folder=tmp_path, only=("x*",)))


def test_text_that_fits_no_canvas_and_wrong_settings_say_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match=r"do not fit 64 x 64 pixels at 60"):
        pure(tmp_path, resolution=64, aspects=("1:1",), least_size=60).make(0)
    with pytest.raises(ValidationError, match=r"pure\.margin: 0\.3 to 0\.1 is no range"):
        PureConfig(margin=(0.3, 0.1))
