"""What annotation says against what operators find in the picture: quotations, watermarks, what disturbs the view."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from producer.annotate.join import TAGS
from producer.index import CAPTION
from producer.operator.judgement import NOT_JUDGED, Judgement
from producer.operator.quotation import agreement, edits, letters, quotations, read_lines
from producer.operator.stage import OperatorsConfig, Stage, build_stage, describe
from tests.unit.producer import tables


def stage_of(*, annotated: bool = True, **operators: Any) -> Stage:
    return build_stage(OperatorsConfig.model_validate(operators), TAGS if annotated else ())


def said(name: str, settings: dict[str, Any], **columns: list[Any]) -> list[Judgement]:
    """What the operator `name` makes of a table."""
    kind = getattr(OperatorsConfig.model_validate({name: settings}), name).operator()
    table = pa.table({key.replace("__", "."): value for key, value in columns.items()})
    score, verdict, reason = tables.judge(kind, table.select(kind.needs))
    none = np.isnan(score)
    return [
        NOT_JUDGED if skip else Judgement(value, keep == 1, why)
        for skip, value, keep, why in zip(none, score.tolist(), verdict.tolist(), reason.to_pylist(), strict=True)
    ]


def words(**texts: str) -> list[dict[str, Any]]:
    return [
        {"split": split, "text": text, "tokens": 1, "kept": True, "reason": ""} for split, text in sorted(texts.items())
    ]


def lines(*texts: str) -> str:
    return json.dumps([{"text": text, "box": [0, 0, 1, 1], "score": 0.9} for text in texts], ensure_ascii=False)


@given(pattern=st.text("ab天", min_size=1, max_size=6), text=st.text("ab天c", max_size=9))
def test_edits_are_those_of_the_best_place_in_the_text(pattern: str, text: str) -> None:
    assert edits(pattern, text) == min(
        distance(pattern, text[first:last]) for first in range(len(text) + 1) for last in range(first, len(text) + 1)
    )


def distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for number, char in enumerate(one, 1):
        left, row[0] = row[0], number
        for at, against in enumerate(other, 1):
            left, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, left + (char != against))
    return row[-1]


def test_quotations_are_found_in_both_languages_whatever_their_marks() -> None:
    text = 'A sign says “Open 24h”, a poster "SALE" and 「开门」 beside 『ＡＢＣ』; it\'s "..." and «Été», „Tür“.'
    assert quotations(text) == ["open24h", "sale", "开门", "abc", "été", "tür"]
    assert quotations('"Привет" and "مرحبا" are not read here, "Straße 9" is') == ["strasse9"]
    assert quotations("It's the dogs' day, 5' by 6'.") == [] == quotations('one " alone')
    assert letters("Ｈello,  WORLD!\n") == "helloworld"
    assert len(quotations('"a" ' * 10_000)) == 64


def test_agreement_counts_characters_that_are_read_too() -> None:
    there = read_lines(lines("GRAND OPEN", "ING", "5 May")) or ""
    assert agreement(["grandopening"], there) == 1.0 == agreement(["5may", "open"], there)
    assert agreement(["grandopenimg"], there) == pytest.approx(11 / 12)
    assert agreement(["closed"], there) < 0.5 < agreement(["grandopening", "xyz"], there) < 1
    assert agreement(["open"], "") == 0.0
    assert read_lines("") == "" == read_lines("[]") and read_lines('{"a": 1}') is None is read_lines("[3]")


def test_captions_that_quote_what_is_not_there_are_told_from_those_that_do() -> None:
    invented = words(raw='"Whatever"', recaption='It says "Welcome to Paris".')
    captions = [
        words(recaption='A shop sign says "OPEN".'),
        invented,
        words(recaption="Nothing is quoted."),
        words(raw='It says "NOT THERE".'),
        words(recaption='It says "OPEN".'),
    ]
    tags = [lines("Open")] * 4 + ["no tag"]
    found = said("quoted_text", {}, captions=pa.array(captions, pa.list_(CAPTION)).to_pylist(), **{"tag__text": tags})
    assert found[0] == Judgement(1.0, True) and found[2:] == [NOT_JUDGED] * 3
    assert found[1].verdict is False and found[1].score is not None and found[1].score < 0.3
    assert "of what captions quote, below 0.5" in found[1].reason


def test_a_watermark_that_one_sees_and_the_other_does_not_is_a_low_score() -> None:
    lists = ['["a logo"]', "[]", '["a logo"]', "[]", "", "[]"]
    scores = [0.9, 0.1, 0.2, 0.8, 0.5, None]
    columns = {"tag__watermark_list": lists, "score__watermark": scores}
    found = said("watermark_agreement", {}, **columns)
    assert [one.score for one in found] == pytest.approx([0.9, 0.9, 0.2, 0.2, None, None])
    assert [one.verdict for one in found] == [True] * 4 + [None] * 2
    strict = said("watermark_agreement", {"min": 0.5}, **columns)
    assert [one.verdict for one in strict] == [True, True, False, False, None, None]
    assert strict[2].reason == "annotation lists a watermark, the detector says 0.20"


def test_evidence_for_what_disturbs_the_view_is_that_of_the_surest_operator() -> None:
    columns = {
        "tag__abnormal_element": ["yes", "yes", "no", "no", "", "yes"],
        "score__mosaic": [0.55, 0.0, 0.0, 0.55, 0.5, None],
        "score__code": [2.0, 0.0, 0.0, 0.0, 0.0, None],
    }
    settings = {"against": {"mosaic": 0.55, "code": 1.0}, "min": 0.5}
    found = said("abnormal_agreement", settings, **columns)
    assert [one.score for one in found] == pytest.approx([1.0, 0.0, 1.0, 0.5, None, None])
    assert [one.verdict for one in found] == [True, False, True, True, None, None]
    with pytest.raises(ValidationError, match="must be above 0"):
        OperatorsConfig.model_validate({"abnormal_agreement": {"against": {"mosaic": 0.0}}})


def test_a_check_without_what_it_compares_is_off_and_says_what_is_missing() -> None:
    checks: dict[str, Any] = {"quoted_text": {}, "watermark_agreement": {}, "abnormal_agreement": {}}
    stage = stage_of(**checks)
    assert stage.off["watermark_agreement"] == "there is no score.watermark in this recipe"
    assert stage.off["abnormal_agreement"] == "there is no score.mosaic and no score.code in this recipe"
    assert "tag.text" in stage.off["quoted_text"] and not stage.tables
    assert {"quoted_text", "abnormal_agreement"} <= set(stage.names)
    able = stage_of(mosaic={}, code={}, **checks)
    assert [table.name for table in able.tables] == ["abnormal_agreement"]
    alone = stage_of(annotated=False, mosaic={}, code={}, **checks)
    assert alone.off["abnormal_agreement"] == "there is no tag.abnormal_element in this recipe"
    facts = describe(OperatorsConfig.model_validate({"mosaic": {}, "code": {}} | checks), able)
    assert facts["image_type"] == {"annotated": True, "of": "tag"} and "off" in facts["quoted_text"]
