"""Operators on the words of captions: precision and recall on labelled ones, and each defect by its name."""

import json
from functools import cache
from pathlib import Path

import pytest

from producer.operator.invalid_caption import DEFECTS, InvalidCaption, InvalidCaptionConfig
from producer.operator.judgement import Judgement, Score
from producer.operator.repetition import repetition
from producer.operator.stage import OperatorsConfig, build_stage, describe, scoring
from producer.operator.token_length import TokenLength, TokenLengthConfig
from producer.tokens import count_tokens

LABELLED = Path(__file__).parent / "labelled_captions.json"


@cache
def labelled() -> dict[str, dict[str, list[str]]]:
    return json.loads(LABELLED.read_text(encoding="utf-8"))


def invalid(*texts: str) -> list[Score]:
    return InvalidCaption(InvalidCaptionConfig()).score_texts(["raw"] * len(texts), texts, [1] * len(texts))


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_good_captions_stay_short_ones_and_those_that_quote_defects_too(language: str) -> None:
    good = labelled()["good"][language]
    assert len(good) >= 60
    dropped = [(text, score.note) for text, score in zip(good, invalid(*good), strict=True) if score.value]
    assert not dropped


@pytest.mark.parametrize("kind", list(DEFECTS))
def test_bad_captions_are_found_and_called_by_their_defect(kind: str) -> None:
    texts = labelled()["bad"][kind]
    found = [kind in [one.split(":")[0] for one in score.note.split("; ")] for score in invalid(*texts)]
    assert sum(found) >= 0.95 * len(texts), [text for text, right in zip(texts, found, strict=True) if not right]


def test_precision_and_recall_over_all_labelled_captions_are_at_least_095() -> None:
    operator = InvalidCaption(InvalidCaptionConfig())
    good = [text for texts in labelled()["good"].values() for text in texts]
    bad = [text for texts in labelled()["bad"].values() for text in texts]
    drops_good, drops_bad = (
        sum(operator.judge(score).verdict is False for score in invalid(*texts)) for texts in (good, bad)
    )
    assert min(len(good), len(bad)) >= 150
    assert drops_bad >= 0.95 * len(bad) and drops_bad >= 0.95 * (drops_bad + drops_good)


def test_the_number_of_defects_is_the_score_and_the_reason_names_them() -> None:
    operator = InvalidCaption(InvalidCaptionConfig())
    (none, one, two) = invalid("A cat.", "<b>A cat.</b>", "<b>Sorry, I can't describe this image.</b>")
    assert operator.judge(none) == Judgement(0.0, True)
    assert operator.judge(one) == Judgement(1.0, False, "markup: <b>")
    assert operator.judge(two) == Judgement(2.0, False, "refusal: sorry, i can't describe; markup: <b>")
    assert InvalidCaption(InvalidCaptionConfig(max=1)).judge(one).verdict


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("tock " * 7, False),
        ("tock " * 8, True),
        ("tick tock " * 4, False),
        ("tick tock " * 5, True),
        ("a cat on a mat " * 2, False),
        ("a cat on a mat " * 3, True),
        ("哈" * 7, False),
        ("哈" * 8, True),
        ("美丽的风景，" * 2, False),
        ("美丽的风景，" * 3, True),
        ("So" + "o" * 8, False),
        ("So" + "o" * 10, True),
        ("Fresh bread daily. Open at 7. Fresh bread daily.", False),
        ("Fresh bread daily here. Open at 7. Fresh bread daily here. Now. Fresh bread daily here.", True),
    ],
)
def test_a_loop_is_told_from_a_rhyme_by_how_often_it_repeats(text: str, loops: bool) -> None:
    assert bool(repetition(text)) is loops


def test_a_loop_at_the_end_of_a_long_caption_is_found() -> None:
    words = " ".join(f"word{n}" for n in range(900))
    assert not repetition(words)
    assert repetition(f"{words}{' and a boat' * 5}") == "and a boat"


@pytest.mark.parametrize(
    "text",
    [
        *(piece * (64_000 // len(piece)) for piece in ("a", "a.", " ", "[", "<a ", "1 ", "\n ", "sorry i ", "我不能")),
        "img " + "1 " * 9000 + "x",
        "a@" + "b-" * 20000,
        '{"a": ' * 9000,
        "".join(chr(0x4E00 + n % 5000) for n in range(30000)),
    ],
)
@pytest.mark.timeout(20)
def test_no_text_takes_more_time_than_its_length_is_worth(text: str) -> None:
    """Patterns that tried all ends from all starts took minutes for some of these; a tenth of a second is usual."""
    (score,) = invalid(text)
    assert score.value is not None


def test_captions_above_the_bound_of_tokens_are_dropped_by_the_real_tokenizers_count(tmp_path: Path) -> None:
    from launch.make_encoders import make_tokenizer

    make_tokenizer().save_pretrained(tmp_path)
    texts = ["A cat.", "a cat and " * 200, "一只猫" * 600]
    counts = count_tokens(tmp_path, texts)
    operator = TokenLength(TokenLengthConfig())
    scores = operator.score_texts(["raw", "recaption", "fused"], texts, counts)
    assert [score.value for score in scores] == [float(count) for count in counts]
    assert [operator.judge(score).verdict for score in scores] == [True, True, False]
    assert operator.judge(scores[2]).reason == f"{counts[2]} tokens, above 1019"
    assert [operator.judge(Score(float(n))).verdict for n in (1019, 1020)] == [True, False]


def test_operators_on_words_change_no_score_file() -> None:
    asked = OperatorsConfig.model_validate({"token_length": {"max": 77}, "invalid_caption": {}})
    stage = build_stage(asked)
    assert [one.name for one in stage.texts] == ["invalid_caption", "token_length"]
    assert scoring(asked, stage) == scoring(OperatorsConfig(), build_stage(OperatorsConfig()))
    assert describe(asked, stage)["token_length"] == {"version": 1, "max": 77, "of": "captions"}
