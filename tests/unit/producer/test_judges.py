"""The kinds of judges: of captions beside pictures, of words alone, of the whole table; and taggers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from producer.index import Index, write_generation
from producer.operator.judgement import NOT_JUDGED, Judgement, Judgements, Sample, Score
from producer.operator.stage import OperatorsConfig, Stage, build_stage
from producer.recipe import RecipeConfig, Threshold, select
from producer.scoring import look, score_batch, score_schema
from producer.scratch import MEMORY, Space
from producer.source.reader import SourceConfig, open_source
from producer.verdict import WholeError
from tests.unit.producer.test_scoring import jpeg, lengths, write
from tests.unit.producer.whole import decide


class Alike:
    """Of raw captions: how many letters a caption shares with the picture's key; kept from 1 on."""

    name, version = "alike", 1

    def score_captions(self, samples: Sequence[Sample]) -> list[list[Score]]:
        return [[self._score(one, split) for split in sorted(one.raw.captions)] for one in samples]

    def _score(self, sample: Sample, split: str) -> Score:
        letters = set(sample.raw.key.split("/")[1]) & set(sample.raw.captions[split])
        return Score(float(len(letters))) if split == "raw" and sample.picture else Score(None)

    def judge(self, score: Score) -> Judgement:
        return NOT_JUDGED if score.value is None else Judgement(score.value, score.value >= 1, "nothing alike")


class Words:
    """Of all captions: their tokens; kept up to 9."""

    name, version = "words", 1

    def score_texts(self, splits: Sequence[str], texts: Sequence[str], tokens: Sequence[int]) -> list[Score]:
        return [Score(float(number)) for number in tokens]

    def judge(self, score: Score) -> Judgement:
        assert score.value is not None
        return Judgement(score.value, score.value <= 9, f"{score.value:g} tokens, above 9")


class Letter:
    """The first letter of the key, shared with nobody."""

    name, version = "letter", 1

    def tag(self, samples: Sequence[Sample]) -> list[str]:
        return [one.memo.setdefault("letter", one.raw.key.split("/")[1][:1]) for one in samples]


class Last:
    """Keeps all but the last sample that is left of each letter."""

    name, version, needs = "last", 1, ("key", "tag.letter", "score.words")

    def judge_table(self, table: pa.Table, space: Space = MEMORY) -> Iterator[Judgements]:
        assert table.column_names == list(self.needs)
        letters = table["tag.letter"].to_pylist()
        # In pieces, as operators say it of large sets.
        for n, one in enumerate(letters):
            yield Judgements.of([Judgement(float(n), one in letters[n + 1 :], "the last of its letter")])


def stage() -> Stage:
    plain = build_stage(OperatorsConfig())
    kinds = plain.kinds | {"alike": "captions", "words": "captions", "letter": "tag", "last": "sample"}
    return replace(plain, captions=(Alike(),), texts=(Words(),), tags=(Letter(),), tables=(Last(),), kinds=kinds)


def rows(folder: Path) -> pa.Table:
    """Scored and judged as curation does, by `stage`."""
    reader = open_source(SourceConfig(path=folder))
    (shard,) = reader.shards()
    scored = list(score_batch(reader, list(reader.samples(shard)), stage()))
    table = pa.Table.from_pylist(scored, schema=score_schema(stage()))
    return decide(table, stage(), source=SourceConfig(path="nowhere", name="set"), count_tokens=lengths)


def curated(tmp_path: Path) -> pa.Table:
    folder = write(
        tmp_path,
        {
            "ab": (jpeg(), "a"),
            "ac": (jpeg("coffee"), "zzz"),  # not alike: dropped, its only caption fails
            "ad": (jpeg("chelsea"), "a word and many more"),  # alike, but too long
            "ax": (jpeg("rocket"), "ax"),  # the last of its letter
            "bb": (b"broken", "b"),
        },
    )
    return rows(folder)


def test_a_sample_is_dropped_by_the_judge_of_its_last_caption(tmp_path: Path) -> None:
    found: dict[str, dict[str, Any]] = {row["key"].split("/")[1]: row for row in curated(tmp_path).to_pylist()}
    assert {key: row["dropped_by"] for key, row in found.items()} == {
        "ab": "",
        "ac": "alike",
        "ad": "words",
        "ax": "last",
        "bb": "broken",
    }
    assert found["ac"]["captions"][0]["reason"] == "alike: nothing alike" and not found["ac"]["captions"][0]["kept"]
    assert found["ad"]["score.alike"] == [2.0] and found["ad"]["score.words"] == [20.0]
    assert found["ad"]["reason"] == "20 tokens, above 9" and found["ad"]["verdict.alike"] is True
    assert found["bb"]["score.alike"] == [None] and found["bb"]["verdict.alike"] is None
    assert [found[key]["tag.letter"] for key in ("ab", "bb")] == ["a", "b"]
    assert found["ab"]["score.last"] == 0.0 and found["ac"]["score.last"] is None


class NamedError(ValueError):
    """Says which file is wrong."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ValueError("operands could not be broadcast"), r"^operators\.last: ValueError: operands could not"),
        (MemoryError(), r"^operators\.last: MemoryError"),
        (pa.ArrowInvalid("no such cast"), r"^operators\.last: ArrowInvalid: no such cast"),
    ],
)
def test_an_error_in_an_operator_on_the_whole_set_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def faulty(*_: object) -> Iterator[Judgements]:
        raise raised

    monkeypatch.setattr(Last, "judge_table", faulty)
    with pytest.raises(WholeError, match=said):
        curated(tmp_path)


def test_an_error_with_a_name_of_its_own_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> Iterator[Judgements]:
        raise NamedError("operators.last.file: no such file")

    monkeypatch.setattr(Last, "judge_table", faulty)
    with pytest.raises(NamedError, match=r"^operators\.last\.file: no such file"):
        curated(tmp_path)


def test_a_caption_that_fails_leaves_the_others_of_its_sample(tmp_path: Path) -> None:
    folder = write(tmp_path, {"ab": (jpeg(), "zzz"), "ac": (jpeg("coffee"), "c")})
    reader = open_source(SourceConfig(path=folder))
    raw = [
        replace(one, captions={**one.captions, "recaption": "a picture"}) for one in reader.samples(reader.shards()[0])
    ]
    mine = replace(stage(), tables=(), kinds={name: kind for name, kind in stage().kinds.items() if name != "last"})
    table = pa.Table.from_pylist(list(score_batch(reader, raw, mine)), schema=score_schema(mine))
    table = decide(table, mine, source=SourceConfig(path="nowhere", name="set"), count_tokens=lengths)
    assert table["kept"].to_pylist() == [True, True]
    assert table["score.alike"].to_pylist() == [[0.0, None], [1.0, None]]
    found = select(table, RecipeConfig(splits={"raw": 1, "recaption": 1}))
    assert found.counts == {"raw": {"used": 1, "caption not kept by curation": 1}, "recaption": {"used": 2}}


def test_a_threshold_on_captions_bounds_the_splits_that_were_judged_alone(tmp_path: Path) -> None:
    folder = write(tmp_path, {"ab": (jpeg(), "a"), "abc": (jpeg("coffee"), "abc")})
    reader = open_source(SourceConfig(path=folder))
    raw = [replace(one, captions={**one.captions, "recaption": "a"}) for one in reader.samples(reader.shards()[0])]
    mine = replace(stage(), tables=(), kinds={name: kind for name, kind in stage().kinds.items() if name != "last"})
    table = pa.Table.from_pylist(list(score_batch(reader, raw, mine)), schema=score_schema(mine))
    table = decide(table, mine, source=SourceConfig(path="nowhere", name="set"), count_tokens=lengths)
    bounded = {"alike": Threshold(min=2.0), "words": Threshold(max=2.0)}
    found = select(table, RecipeConfig(splits={"raw": 1, "recaption": 1}, thresholds={"alike": bounded["alike"]}))
    assert found.counts == {"raw": {"used": 1, "alike below 2": 1}, "recaption": {"used": 2}}
    found = select(table, RecipeConfig(splits={"recaption": 1}, thresholds=bounded))
    assert found.counts == {"recaption": {"used": 2}}


def test_an_index_of_all_kinds_is_written_and_read_again(tmp_path: Path) -> None:
    table = curated(tmp_path)
    said = {name: {"version": 1, "of": kind} for name, kind in stage().kinds.items()}
    write_generation(tmp_path / "index", table, tokenizer="t", operators=said)
    assert Index.open(tmp_path / "index").table.equals(table)


def test_what_several_operators_need_of_a_sample_is_made_once(tmp_path: Path) -> None:
    reader = open_source(SourceConfig(path=write(tmp_path, {"ab": (jpeg(), "a")})))
    (raw,) = reader.samples(reader.shards()[0])
    _, sample = look(reader, raw, stage())
    Letter().tag([sample])
    assert sample.memo == {"letter": "a"}
    sample.memo["letter"] = "kept"
    assert Letter().tag([sample]) == ["kept"]


@pytest.mark.parametrize("kind", ["score.alike", "note.alike", "tag.letter"])
def test_score_files_have_a_column_for_what_each_kind_says(kind: str) -> None:
    assert kind in score_schema(stage()).names and f"{kind.split('.')[0]}.words" not in score_schema(stage()).names
