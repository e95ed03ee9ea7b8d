"""Reading: lines read once for all operators, tags of what they say, and layout rules on lines at hand."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from producer.api.bucket import bucket
from producer.operator import reading
from producer.operator.code import CodeConfig, CodeError
from producer.operator.judgement import FINE, NOT_JUDGED, SIDE, Picture, Sample
from producer.operator.reading import Line, ReadingError, read, read_samples
from producer.operator.script import script_of
from producer.operator.small_character import SmallCharacter
from producer.operator.stage import OPT_IN, OperatorsConfig, build_stage, scoring
from producer.operator.text_layout import covered, letters
from producer.picture import fit
from producer.scoring import look
from producer.source.shard import RawSample
from tests.unit.producer.damaged import jpeg, seen
from tests.unit.producer.lettering import package_fonts

ROOT = Path(__file__).parents[3]
READERS = ("text", "script", "intensive_text", "small_character")


def line(text: str, left: float = 0.1, top: float = 0.1, right: float = 0.9, bottom: float = 0.2) -> Line:
    return Line(text, 0.99, ((left, top), (right, top), (right, bottom), (left, bottom)))


def page(*texts: str, size: int = 30, width: int = 600) -> np.ndarray:
    image = Image.new("RGB", (width, 3 * size * len(texts) + size), "white")
    font = ImageFont.truetype(str(package_fonts() / "NotoSansCJKsc-Regular.otf"), size)
    for number, text in enumerate(texts):
        ImageDraw.Draw(image).text((size, 3 * size * number + size), text, "black", font)
    return np.asarray(image)


def test_a_page_is_read_in_order_once_for_all_and_tagged() -> None:
    texts = ("Opening hours", "清晨的阳光照在城墙上", "Сегодня хорошая погода")
    sample = seen(jpeg(page(*texts)))
    (lines,) = read_samples([sample])
    # Cyrillic is beyond the recogniser; that there is a line is not.
    assert lines and [one.text for one in lines] == ["Opening hours", "清晨的阳光照在城墙上", ""]
    assert read_samples([sample])[0] is lines
    stage = build_stage(OperatorsConfig.model_validate({name: {} for name in READERS}))
    tags = {one.name: one.tag([sample])[0] for one in stage.tags}
    entries = json.loads(tags["text"])
    assert [one["text"] for one in entries] == list(texts[:2]) and entries[0].keys() == {"text", "box", "score"}
    assert all(0 <= edge <= 1 for one in entries for edge in one["box"]) and " " not in tags["text"][:9]
    assert tags["script"] == "chinese"


def test_what_has_no_text_and_what_has_no_picture_is_told_apart() -> None:
    samples = [seen(jpeg(np.full((40, 500, 3), 90, np.uint8))), Sample(seen(b"").raw, None, "broken")]
    samples.append(seen(jpeg(np.zeros((2, 900, 3), np.uint8))))
    stage = build_stage(OperatorsConfig.model_validate({name: {} for name in READERS}))
    assert {one.name: one.tag(samples) for one in stage.tags} == {"script": ["none", "", "none"], "text": [""] * 3}
    judged = {one.name: [one.judge(score) for score in one.score(samples)] for one in stage.single[-2:]}
    assert [one.verdict for one in judged["intensive_text"]] == [True, None, True]
    assert judged["small_character"] == [NOT_JUDGED] * 3


def test_the_same_picture_is_read_to_the_same_bits_whatever_was_read_before() -> None:
    one, other = page("Opening hours 9-17", "清晨营业"), page("Closed on Sundays", size=44)
    assert read(one) == (first := read(one)) and read(other) and read(one) == first


def test_a_crowd_of_lines_is_recognised_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LINES", 1)
    small, large = page("Opening hours", size=24), page("Closed", size=60)
    lines = read(np.concatenate([small, large]))
    assert [one.text for one in lines] == ["", "Closed"]


@pytest.mark.parametrize(
    ("texts", "script"),
    [
        ((), "none"),
        (("Opening hours",), "english"),
        (("Déjà vu",), "english"),
        (("营业时间", "open"), "chinese"),
        (("繁體中文書法",), "chinese"),
        (("世", "one"), "chinese"),  # a tie
        (("one two three", "世界"), "english"),
        (("こんにちは、お元気ですか",), "other"),
        (("日本の夏",), "other"),
        (("한국어",), "other"),
        (("50%", "12:30"), "other"),
        (("open 24/7 1000000",), "english"),
        (("", "", "ok"), "other"),
    ],
)
def test_scripts_are_told_by_words_and_characters(texts: tuple[str, ...], script: str) -> None:
    assert script_of([line(text) for text in texts]) == script


def test_overlapping_lines_cover_their_place_once_and_columns_have_letters_too() -> None:
    band = line("x", 0, 0.25, 1, 0.75)
    assert covered([band], 800, 400) == pytest.approx(0.5, abs=0.02)
    assert covered([band, band], 800, 400) == covered([band], 800, 400) and covered([], 800, 400) == 0
    ems, room = letters([line("x", 0, 0, 1, 0.1), line("x", 0, 0, 0.1, 1)], 500, 500)
    assert ems == pytest.approx([50 / 1.1] * 2) and room == pytest.approx([10, 10])


def test_high_frames_in_which_nothing_can_be_read_are_no_lines() -> None:
    stars = line("", 0.0, 0.0, 1.0, 1.0)
    assert covered([stars], 600, 400) == 0 < covered([stars._replace(text="OPEN")], 600, 400)
    unknown = [line("", 0.1, top, 0.9, top + 0.05) for top in (0.1, 0.2, 0.3)]
    known = [one._replace(text="a") for one in unknown]
    assert covered(unknown, 600, 400) == covered(known, 600, 400) > 0.1


def test_the_size_of_letters_follows_the_training_bucket_without_scoring_again() -> None:
    width, height, em = 1500, 1000, 60.0
    picture = Picture(width, height, np.zeros((340, 512, 3), np.uint8))
    sample = Sample(seen(b"").raw, picture, memo={"lines": [line("x", 0.1, 0.1, 0.9, 0.1 + em * 1.1 / height)]})
    (score,) = SmallCharacter(8, 256).score([sample])
    assert score.value is not None
    for resolution in (256, 640, 1328):
        target = bucket(resolution, "3:2")
        scale = max(target.width / width, target.height / height)
        assert score.value * resolution == pytest.approx(em * scale, rel=0.05)
        # As encoding would cut and scale it.
        assert fit(Image.new("RGB", (width, height)), target).shape[:2] == (target.height, target.width)
    assert SmallCharacter(8, 256).judge(score).verdict
    judged = SmallCharacter(20, 256).judge(score)
    assert judged.verdict is False and judged.reason.endswith("pixels at 256p, below 20")
    assert SmallCharacter(20, 640).judge(score).verdict


def test_one_mark_among_many_letters_does_not_make_a_picture_small() -> None:
    lines = [line("a heading of many letters", 0, 0.1 * n, 1, 0.1 * n + 0.08) for n in range(5)]
    lines.append(line("1)", 0.5, 0.9, 0.51, 0.91))
    sample = Sample(seen(b"").raw, Picture(512, 512, np.zeros((512, 512, 3), np.uint8)), memo={"lines": lines})
    (score,) = SmallCharacter(8, 256).score([sample])
    assert score.value == pytest.approx(0.08 / 1.1, rel=0.02)


def test_only_operators_of_small_things_make_batches_hold_larger_pictures() -> None:
    content = jpeg(np.zeros((900, 2000, 3), np.uint8))
    raw = RawSample("a/x", "a.tar", "x.jpg", 512, len(content), {"raw": "x"}, image=content)
    reader: Any = None
    plain, fine = (build_stage(OperatorsConfig.model_validate(one)) for one in ({}, {"script": {}}))
    pictures = [look(reader, raw, stage)[1].picture for stage in (plain, fine)]
    assert [max(one.finest.shape) for one in pictures if one] == [SIDE, FINE]
    assert "script.fine" in scoring(OperatorsConfig.model_validate({"script": {}}), fine)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    gone = {"rapidocr", "zxingcpp"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else found(name, *more))
    for name in READERS:
        with pytest.raises(ReadingError, match=rf"operators\.{name} .*rapidocr.*pip install 'inkstone\[curation\]'"):
            OPT_IN[name]().operator()
    with pytest.raises(CodeError, match=r"operators\.code .*pip install 'inkstone\[curation\]'"):
        CodeConfig().operator()


def test_reading_is_silent_and_asks_no_network(tmp_path: Path) -> None:
    """In a process whose every socket fails."""
    np.save(tmp_path / "page.npy", page("Opening hours"))
    check = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import numpy as np\n"
        "from producer.operator.reading import read\n"
        f"lines = read(np.load({str(tmp_path / 'page.npy')!r}))\n"
        "assert [one.text for one in lines] == ['Opening hours'], lines\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", check],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
