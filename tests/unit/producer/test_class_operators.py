"""Classes of samples: rules, a taxonomy, likeness to examples, and what is kept or drawn more often by them."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from producer.operator.best_per_class import BestPerClass, BestPerClassConfig
from producer.operator.category import Category, CategoryConfig
from producer.operator.character_rarity import CharacterRarity, CharacterRarityConfig, quotes
from producer.operator.clarity import ClarityConfig
from producer.operator.domain import Domain
from producer.operator.embedding import pack
from producer.operator.encoder import Encoder
from producer.operator.lexicon import Lexicon
from producer.operator.rarity import Rarity, RarityConfig
from producer.operator.retrieved import Retrieved, RetrievedConfig, RetrievedError
from producer.operator.rule_file import RuleError, Rules, count_letters
from producer.operator.stage import OperatorsConfig, StageError, build_stage, describe
from producer.operator.taxonomy import Taxonomy, TaxonomyConfig
from producer.recipe import RecipeConfig, Threshold, select
from producer.scoring import score_batch, score_schema
from producer.scratch import Space
from producer.source.reader import SourceConfig, open_source
from tests.unit.producer import tables
from tests.unit.producer.rows import table as index_rows
from tests.unit.producer.test_judges import jpeg, lengths, write
from tests.unit.producer.tiny_encoders import siglip
from tests.unit.producer.whole import decide

CONFIGS = Path(__file__).parents[3] / "launch/configs/curation"


def captioned(*captions: str | Sequence[str], **columns: Sequence[object]) -> pa.Table:
    """Rows with these captions, all kept, and columns beside them."""
    rows = [
        [{"split": f"s{n}", "text": text, "tokens": 1, "kept": True, "reason": ""} for n, text in enumerate(mine)]
        for mine in ([one] if isinstance(one, str) else one for one in captions)
    ]
    return pa.table({"captions": rows} | {name.replace("_", ".", 1): list(values) for name, values in columns.items()})


def found(phrases: dict[str, int], text: str) -> list[int]:
    return [one.number for one in Lexicon(phrases).find(text)]


def test_words_are_found_whole_in_any_case_and_with_their_plurals() -> None:
    phrases = {"dog": 1, "bus": 2, "butterfly": 3, "boy": 4, "stained glass": 5}
    assert found(phrases, "Two DOGS, three buses & butterflies; BOYS beside stained glasses") == [1, 2, 3, 4, 5]
    assert found(phrases, "a dogma, a hotdog, busy boyish glass, stained") == []
    assert found({"glass": 1, "glasses": 2}, "glass and glasses") == [1, 2], "a word of its own is no plural"


def test_the_longest_phrase_is_found_and_not_what_lies_inside_it() -> None:
    phrases = {"dog": 1, "hot dog": 2, "hot dog stand": 3, "狗": 4, "热狗": 5}
    assert found(phrases, "a hot dog and a dog") == [2, 1]
    assert found(phrases, "the hot dog stand") == [3]
    assert found(phrases, "一只狗在吃热狗") == [4, 5]
    assert found(phrases, "hot hot dog") == [2]


def test_chinese_is_found_without_spaces_and_compatibility_forms_are_alike() -> None:
    assert found({"人像": 1, "自拍": 2}, "她的自拍，人像摄影") == [2, 1]
    assert found({"poster": 1}, "ＰＯＳＴＥＲ") == [1]
    assert found({"café": 1}, "CAFÉ") == [1] and found({"naïve art": 1}, "naïve art") == [1]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text_at_all_is_looked_through(text: str) -> None:
    lexicon = Lexicon({"a": 0, "b c": 1, "人": 2})
    assert all(one.number in (0, 1, 2) for one in lexicon.find(text))


def rule_file(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


RULES = """
otherwise = "general"

[[rule]]
class = "text"
tags.script = ["english", "chinese"]
letters = 4

[[rule]]
class = "portrait"
words = ["portrait", "人像"]

[[rule]]
class = "portrait"
words = ["face"]
tags.image_type = ["photo"]
"""


def test_the_first_rule_of_which_all_holds_decides(tmp_path: Path) -> None:
    category = Category(rule_file(tmp_path / "rules.toml", RULES))
    assert category.needs == ("captions",)
    assert category.may == ("tag.image_type", "tag.script", "tag.text")
    read = [
        json.dumps([{"text": "SALE 50", "box": [0, 0, 1, 1], "score": 1.0}]),
        "",
        json.dumps([{"text": "OK"}]),
        "",
        "",
        "",
    ]
    rows = captioned(
        "a portrait",
        ["a tree", "一张人像照片"],
        "a portrait",
        "a face",
        "a face",
        "a tree",
        tag_script=["english", "none", "english", "none", "none", None],
        tag_text=read,
        tag_image_type=["", "", "", "Photograph, photo", "painting", ""],
    )
    assert tables.tag(category, rows) == ["text", "portrait", "portrait", "portrait", "general", "general"]
    bare = captioned("a portrait", "a face", "nothing")
    assert tables.tag(category, bare) == ["portrait", "general", "general"], "tags that are not there are empty"


def test_captions_that_curation_does_not_keep_say_nothing(tmp_path: Path) -> None:
    rows = captioned("a portrait").to_pylist()
    rows[0]["captions"][0]["kept"] = False
    assert tables.tag(Category(rule_file(tmp_path / "r.toml", RULES)), pa.Table.from_pylist(rows)) == ["general"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("otherwise = 'x'", r"operators\.category\.rules: .*rules\.toml: rule: Field required"),
        ("[[rule]]\nclass = 'a'", r"rule\.1: .*holds of everything"),
        ("[[rule]]\nclass = 'a'\nwords = ['x']\n[[rule]]\nclass = 'b'\nword = ['y']", r"rule\.2\.word: Extra inputs"),
        ("[[rule]]\nclass = 'a'\nwords = ['!?']", r"rule\.1: .*'!\?' has no letters"),
        ("[[rule]]\nclass = 'a'\ntags.script = []", r"tags\.script: no words"),
        ("[[rule]]\nclass = ''\nwords = ['x']", r"rule\.1\.class: "),
        ("rule = [", "not TOML"),
    ],
)
def test_malformed_rules_are_named_with_their_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        Category(rule_file(tmp_path / "rules.toml", text))
    with pytest.raises(RuleError, match=r"operators\.category\.rules: .*none\.toml: No such file"):
        Category(tmp_path / "none.toml")


def test_the_rules_of_the_repository_sort_captions_of_both_languages() -> None:
    category, domain = Category(CONFIGS / "category.toml"), Domain(CONFIGS / "domain.toml")
    rows = captioned(
        "A close portrait of a young woman with red hair",
        "一位年轻女子的肖像，表情平静",
        'A poster that says "SALE" in red letters',
        "海报上写着“新年快乐”",
        "A snowy mountain behind a lake",
        "湖边的雪山",
        "An oil painting of a harbour",
        "Two men playing basketball",
        source=["main"] * 8,
    )
    assert tables.tag(category, rows) == [
        "portrait",
        "portrait",
        "text",
        "text",
        "general",
        "general",
        "general",
        "general",
    ]
    said = ["people", "people", "design", "design", "nature", "nature", "design", "people"]
    assert tables.tag(domain, rows) == said
    synthetic = captioned("A portrait", source=["synthetic"])
    assert tables.tag(domain, synthetic) == ["synthetic"]


TREE = """
[animal]
words = ["animal", "creature"]
[animal.dog]
words = ["dog", "狗"]
[animal.dog.sheepdog]
words = ["sheepdog"]
[food]
[food.hot_dog]
words = ["hot dog", "热狗"]
[thing]
words = ["dog", "animal figure"]
"""


def test_a_sample_belongs_to_the_deepest_node_then_the_longest_word_then_the_first(tmp_path: Path) -> None:
    taxonomy = Taxonomy(rule_file(tmp_path / "tree.toml", TREE))
    rows = captioned(
        "a creature",
        "a dog",
        "my sheepdog, a dog",
        "a hot dog",
        ["a creature", "一只狗"],
        "a stone",
        "an animal figure",
    )
    assert tables.tag(taxonomy, rows) == [
        "animal",
        "animal/dog",
        "animal/dog/sheepdog",
        "food/hot_dog",
        "animal/dog",
        "",
        "thing",
    ]
    assert tables.tag(taxonomy, captioned("a dog beside a hot dog")) == ["food/hot_dog"], (
        "of one depth, the longer word"
    )
    assert tables.tag(Taxonomy(tmp_path / "tree.toml", 1), captioned("my sheepdog", "")) == ["animal", ""]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no node with words"),
        ("[animal]", "has no node with words"),
        ("words = ['x']", r"tree: .*tree\.toml: words: \['x'\]; a node is a table"),
        ("[animal]\nwords = 'dog'", r"animal\.words: 'dog'; give a list of words"),
        ("[animal]\nwords = [1]", r"animal\.words: \[1\]; give a list"),
        ("[animal.dog]\nwords = ['--']", r"animal\.dog\.words: '--' has no letters"),
        ("['a/b']\nwords = ['x']", "may not have a slash"),
    ],
)
def test_a_malformed_tree_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RuleError, match=said):
        Taxonomy(rule_file(tmp_path / "tree.toml", text))


def test_the_tree_of_the_repository_knows_a_hundred_things_in_two_languages() -> None:
    taxonomy = Taxonomy(CONFIGS / "taxonomy.toml")
    rows = captioned("A puppy on a beach", "雪山与湖泊", "a red sports car", "a cup of coffee", "印着标志的海报", "zzz")
    tags = tables.tag(taxonomy, rows)
    assert tags[0] == "animal/mammal/dog" and tags[2].endswith("car/sports_car") and tags[3] == "food/drink/coffee"
    assert all("/" in tag or tag in ("landscape", "design", "") for tag in tags) and tags[5] == ""
    assert len(taxonomy._name) >= 100


def ranked(config: BestPerClassConfig, **columns: Any) -> tuple[list[float], list[int], list[str]]:
    judged = tables.judge(
        BestPerClass(config), pa.table({name.replace("_", ".", 1): list(of) for name, of in columns.items()})
    )
    return np.asarray(judged.score).tolist(), np.asarray(judged.verdict).tolist(), judged.reason.to_pylist()


def test_the_best_of_each_class_stay_by_quality_and_aesthetic() -> None:
    config = BestPerClassConfig(keep=0.5, least=1)
    score, verdict, reason = ranked(
        config,
        tag_taxonomy=["a", "a", "a", "a", "b", "b", ""],
        score_clarity=[1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 1.0],
        score_aesthetic=[4.0, 9.0, 8.0, 1.0, 5.0, 6.0, 1.0],
    )
    # Ranks of clarity and aesthetic in class a: 1/4 2/4 3/4 4/4 and 2/4 4/4 3/4 1/4; of b: 2/2 1/2 and 1/2 2/2.
    assert score == [0.25, 0.75, 1.0, 0.5, 1.0, 0.5, 1.0]
    assert verdict == [0, 1, 1, 0, 1, 0, 1]
    assert reason[0] == "below the best 2 of 4 of a by clarity and aesthetic" and reason[1] == ""


@pytest.mark.parametrize("column", [{}, {"score_aesthetic": [None] * 4}])
def test_without_aesthetic_quality_alone_ranks_and_the_reason_says_so(column: dict[str, list[None]]) -> None:
    columns = {name: pa.array(of, pa.float64()).to_pylist() for name, of in column.items()}
    table = {"tag.taxonomy": ["a"] * 4, "score.clarity": [3.0, None, 4.0, 1.0]}
    table |= {name.replace("_", ".", 1): pa.array(of, pa.float64()) for name, of in columns.items()}
    judged = tables.judge(BestPerClass(BestPerClassConfig(keep=0.5, least=1)), pa.table(table))
    assert judged.verdict.tolist() == [1, 0, 1, 0]
    assert judged.score.tolist() == [0.75, 0.25, 1.0, 0.5], "what was not judged comes last"
    assert judged.reason[3].as_py() == "below the best 2 of 4 of a by clarity"


def test_small_classes_are_not_thinned_and_nothing_judged_drops_nothing() -> None:
    config = BestPerClassConfig(keep=0.1, least=3)
    _, verdict, _ = ranked(config, tag_taxonomy=["a"] * 4 + ["b"] * 2, score_clarity=[4.0, 3.0, 2.0, 1.0, 1.0, 2.0])
    assert verdict == [1, 1, 1, 0, 1, 1]
    nothing = pa.table({"tag.taxonomy": ["a"], "score.clarity": pa.array([None], pa.float64())})
    assert tables.judge(BestPerClass(config), nothing).verdict.tolist() == [-1]
    empty = nothing.slice(0, 0)
    assert tables.judge(BestPerClass(config), empty).score.tolist() == []


def plainly(config: BestPerClassConfig, classes: Sequence[str], *scores: Sequence[float]) -> list[list[Any]]:
    """BestPerClass as its docstring says it, a class and a sample at a time: score and verdict."""
    found: list[list[Any]] = [[] for _ in classes]
    for name in set(classes):
        mine = [row for row, one in enumerate(classes) if one == name]
        ranks = [[sum(score[other] <= score[row] for other in mine) / len(mine) for row in mine] for score in scores]
        better = sorted(range(len(mine)), key=lambda place: (-np.prod([rank[place] for rank in ranks]), place))
        stay = max(config.least, int(np.ceil(config.keep * len(mine))))
        for number, place in enumerate(better):
            found[mine[place]] = [1 - number / len(mine), int(number < stay)]
    return found


_RANKED = st.lists(st.tuples(st.sampled_from(["a", "b", ""]), st.integers(0, 4), st.floats(-9, 9)), max_size=40)


@settings(max_examples=80, deadline=None)
@given(_RANKED, st.floats(0.05, 1), st.integers(1, 5), st.integers(1, 50))
def test_ranks_in_pieces_of_a_file_are_those_of_a_plain_count(
    rows: list[tuple[str, int, float]], keep: float, least: int, piece: int
) -> None:
    config = BestPerClassConfig(keep=keep, least=least)
    classes, clarity, aesthetic = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr("producer.scratch.PIECE", piece)
        patch.setattr("producer.scratch._SMALL", 0)
        table = pa.table(
            {
                "tag.taxonomy": pa.array(classes, pa.string()),
                "score.clarity": pa.array(clarity, pa.float64()),
                "score.aesthetic": pa.array(aesthetic, pa.float64()),
            }
        )
        found = tables.judge(BestPerClass(config), table, Space(Path(folder)))
    both = zip(found.score.tolist(), found.verdict.tolist(), strict=True)
    assert [list(one) for one in both] == plainly(config, classes, clarity, aesthetic)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 9)), min_size=1, max_size=40), st.floats(0.05, 1))
def test_a_recipe_bounds_the_share_that_stays_without_ranking_again(rows: list[tuple[str, float]], keep: float) -> None:
    classes, clarity = zip(*rows, strict=True)
    score, verdict, _ = ranked(BestPerClassConfig(keep=keep, least=1), tag_taxonomy=classes, score_clarity=clarity)
    # The same samples, but for those a rounding error away from the bound.
    by_bound = [one > 1 - keep for one in score]
    near = [abs(one - (1 - keep)) < 1e-9 for one in score]
    assert all(one == bool(is_kept) or close for one, is_kept, close in zip(by_bound, verdict, near, strict=True))


def test_rare_letters_are_scored_by_how_few_samples_have_them() -> None:
    texts = ["the"] * 8 + ["龘"] + [""] * 3
    rows = captioned(*(f'a sign that says "{text}"' if text else "no words" for text in texts))
    judged = tables.judge(CharacterRarity(), rows)
    score = judged.score
    assert score[8] == pytest.approx(np.log2(9)) and score[0] == pytest.approx(np.log2(9 / 8))
    assert np.isnan(score[9:]).all() and judged.verdict.tolist() == [1] * 9 + [-1] * 3
    read = captioned(*["no words"] * 2, tag_text=['[{"text":"Ab"}]', '[{"text":"A1"}]'])
    assert tables.judge(CharacterRarity(), read).score.tolist() == pytest.approx([0.5, 0.0])


def test_quotes_of_several_kinds_are_what_a_caption_says_is_written() -> None:
    assert quotes('"SALE" and “新年快乐” and 「再会」') == ["SALE", "新年快乐", "再会"]
    assert quotes("a plain caption of 'nothing'") == []
    assert count_letters('[{"text":"A 1!"},{"text":"新"}]') == 3 and count_letters(None) == count_letters("") == 0


def test_the_rarest_tenth_of_the_samples_with_text_is_rare() -> None:
    draw = random.Random(0)
    score = [draw.random() for _ in range(1000)] + [None] * 50
    tags = tables.tag(Rarity(0.1, 0.3), pa.table({"score.character_rarity": pa.array(score, pa.float64())}))
    assert Counter(tags) == {"common": 600, "uncommon": 300, "rare": 100, "none": 50}
    assert max(s for s, t in zip(score, tags, strict=True) if t == "common") < min(
        s for s, t in zip(score, tags, strict=True) if t == "rare"
    )
    alike = pa.table({"score.character_rarity": [1.0] * 9})
    assert set(tables.tag(Rarity(0.1, 0.3), alike)) == {"common"}, "equal ones are of one class"
    with pytest.raises(ValueError, match="leave nothing common"):
        RarityConfig(rare=0.5, uncommon=0.5)


def examples(folder: Path, classes: dict[str, dict[str, np.ndarray]]) -> Path:
    for name, pictures in classes.items():
        (folder / name).mkdir(parents=True)
        for file, pixels in pictures.items():
            Image.fromarray(pixels).save(folder / name / f"{file}.png")
    return folder


def patches(seed: int, *, count: int = 1) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(count)]


def test_samples_like_the_examples_of_a_class_get_its_tag_the_most_alike_first(tmp_path: Path) -> None:
    model = siglip(tmp_path / "siglip")
    encoder = Encoder("x", model)
    a, b, other = patches(1)[0], patches(2)[0], patches(3)[0]
    folder = examples(tmp_path / "examples", {"portrait": {"one": a}, "text": {"two": b}})
    stored = [pack(one) for one in encoder.pictures([a, b, other, a])]
    rows = pa.table({"tag.embedding": [stored[0], "", stored[1], stored[2], stored[3]]})
    tags = tables.tag(Retrieved(folder, model, least=0.999, most=10), rows)
    assert tags == ["portrait", "", "text", "", "portrait"]
    assert tables.tag(Retrieved(folder, model, least=0.999, most=1), rows) == ["portrait", "", "text", "", ""]
    assert tables.tag(Retrieved(folder, model, least=-1.0, most=10), rows)[3] in ("portrait", "text")


def test_examples_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    model = siglip(tmp_path / "siglip")
    with pytest.raises(RetrievedError, match=r"operators\.retrieved\.examples: .*No such file"):
        Retrieved(tmp_path / "nowhere", model, least=0.8, most=1)
    (tmp_path / "examples/portrait").mkdir(parents=True)
    with pytest.raises(RetrievedError, match="portrait holds no pictures"):
        Retrieved(tmp_path / "examples", model, least=0.8, most=1)
    (tmp_path / "examples/portrait/one.png").write_bytes(b"no picture")
    broken = Retrieved(tmp_path / "examples", model, least=0.8, most=1)
    rows = pa.table({"tag.embedding": [pack(np.ones(24) / 24**0.5)]})
    with pytest.raises(RetrievedError, match=r"one\.png: .*take it away"):
        tables.tag(broken, rows)
    Image.fromarray(patches(1)[0]).save(tmp_path / "examples/portrait/one.png")
    with pytest.raises(RetrievedError, match="gives 32 numbers a picture, the stored embeddings have 24"):
        tables.tag(Retrieved(tmp_path / "examples", model, least=0.8, most=1), rows)
    assert RetrievedConfig().off_reason().startswith("no examples: set operators.retrieved.examples")
    assert RetrievedConfig(examples=tmp_path).off_reason().startswith("no model: set operators.retrieved.model")


def curated(tmp_path: Path, operators: OperatorsConfig) -> pa.Table:
    """A few photographs with captions, scored and judged as curation does."""
    captions = {
        "astronaut": "a portrait of an astronaut",
        "chelsea": "a cat",
        "coffee": "a cup of coffee",
        "rocket": "a rocket",
    }
    folder = write(tmp_path, {name: (jpeg(name), text) for name, text in captions.items()} | {"bad": (b"x", "a dog")})
    stage = build_stage(operators)
    reader = open_source(SourceConfig(path=folder))
    scored = list(score_batch(reader, list(reader.samples(reader.shards()[0])), stage))
    table = pa.Table.from_pylist(scored, schema=score_schema(stage))
    return decide(table, stage, source=SourceConfig(path="nowhere", name="set"), count_tokens=lengths)


def test_curation_tags_what_it_keeps_ranks_within_the_tags_and_the_sums_hold(tmp_path: Path) -> None:
    operators = OperatorsConfig(
        clarity=ClarityConfig(min=0.0),
        category=CategoryConfig(rules=CONFIGS / "category.toml"),
        taxonomy=TaxonomyConfig(tree=CONFIGS / "taxonomy.toml", depth=1),
        best_per_class=BestPerClassConfig(by="category", keep=0.4, least=1),
        character_rarity=CharacterRarityConfig(),
        rarity=RarityConfig(),
    )
    stage = build_stage(operators)
    order = [one.name for one in stage.tables]
    assert order.index("category") < order.index("best_per_class")
    assert order.index("character_rarity") < order.index("rarity")
    rows = curated(tmp_path, operators)
    by_key = {row["key"].split("/")[1]: row for row in rows.to_pylist()}
    assert by_key["astronaut"]["tag.category"] == "portrait" and by_key["astronaut"]["kept"]
    assert {by_key[name]["tag.taxonomy"] for name in ("chelsea", "coffee", "rocket")} == {"animal", "food", "vehicle"}
    assert by_key["bad"]["tag.category"] == "" and by_key["bad"]["tag.rarity"] == ""
    assert by_key["chelsea"]["tag.rarity"] == "none" and by_key["chelsea"]["score.character_rarity"] is None
    general = [by_key[name] for name in ("chelsea", "coffee", "rocket")]
    best = max(general, key=lambda row: row["score.clarity"])
    assert [row["kept"] for row in general].count(True) == 2 and best["score.best_per_class"] == 1.0
    dropped = Counter(row["dropped_by"] for row in rows.to_pylist())
    assert dropped == {"": 3, "best_per_class": 1, "broken": 1} and sum(dropped.values()) == rows.num_rows
    assert describe(operators, stage)["category"]["of"] == "tag"
    assert (
        "rules" in describe(operators, stage)["category"] and len(describe(operators, stage)["category"]["rules"]) == 64
    )


def test_an_operator_is_off_without_what_it_reads_and_two_may_not_read_each_other(tmp_path: Path) -> None:
    stage = build_stage(OperatorsConfig(best_per_class=BestPerClassConfig(), rarity=RarityConfig()))
    assert stage.off["best_per_class"] == "there is no tag.taxonomy and no score.clarity in this recipe"
    assert stage.off["rarity"] == "there is no score.character_rarity in this recipe"
    rules = rule_file(tmp_path / "circle.toml", "[[rule]]\nclass = 'a'\ntags.category = ['a']")
    with pytest.raises(StageError, match="category each read what another of them says"):
        build_stage(OperatorsConfig(category=CategoryConfig(rules=rules)))


def test_what_annotation_says_of_a_picture_is_a_tag_that_rules_see() -> None:
    operators = OperatorsConfig(category=CategoryConfig(rules=CONFIGS / "category.toml"))
    stage = build_stage(operators, annotated=("image_type", "image_style"))
    assert stage.kinds["image_type"] == "tag" and "tag.image_type" in stage.tables[0].may  # type: ignore[union-attr]
    rows = captioned("two people", "two people", tag_image_type=["Photograph, close portrait", "photograph"])
    assert tables.tag(Category(CONFIGS / "category.toml"), rows) == ["portrait", "general"]


def test_without_its_file_an_operator_is_off_and_says_what_to_set() -> None:
    stage = build_stage(OperatorsConfig(category=CategoryConfig(), taxonomy=TaxonomyConfig()))
    assert stage.off["category"].startswith("no rules: set operators.category.rules")
    assert stage.off["taxonomy"].startswith("no tree: set operators.taxonomy.tree")
    assert stage.kinds["category"] == stage.kinds["taxonomy"] == "tag"


def test_rarity_weighs_in_a_recipe_like_any_other_class() -> None:
    tags = (["rare"] + ["common"] * 4 + ["none"] * 5) * 40
    rows = index_rows(400).append_column("tag.rarity", pa.array(tags))
    chosen = select(rows, RecipeConfig(classes={"rarity": {"rare": 1.0, "common": 1.0}}))
    assert chosen.counts["raw"] == {"used": 200, "rarity none, which recipe.classes gives no weight": 200}
    bounded = select(
        rows, RecipeConfig(classes={"rarity": {"rare": 1.0}}, thresholds={"aesthetic": Threshold(min=1.0)})
    )
    assert sum(bounded.counts["raw"].values()) == 400


def test_rules_name_the_columns_that_they_look_at() -> None:
    assert "source" in Rules.read(CONFIGS / "domain.toml", "x").columns
