"""The page of launch/inspect.py in a real browser: its numbers, its sliders, and words that would do harm."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from launch import inspect
from launch.page import survey as surveys
from launch.page.document import SCRIPTS, embedded
from launch.page.judges import judges
from launch.page.rows import Rows
from producer.index import IndexFormatError, schema, write_generation
from tests.unit.launch import judged
from tests.unit.launch.browser import browser, scheme, size

ROOT = Path(__file__).parents[3]
ROWS = 900
Bounds = Mapping[str, Mapping[str, float]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """The page of an index of 900 samples with pictures, and the rows of it."""
    folder = tmp_path_factory.mktemp("inspected")
    (folder / "raw").mkdir()
    rows = judged.pictures(folder / "raw", judged.table(ROWS))
    judged.index(folder / "index", rows)
    return run(folder, "--source", str(folder / "raw")), rows


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("browser")) as driver:
        size(driver, 1280, 900)
        yield driver


@pytest.fixture
def page(chrome: Any, made: tuple[Path, pa.Table]) -> Any:
    """The page, just opened."""
    chrome.get(made[0].as_uri())
    return chrome


def run(folder: Path, *more: str) -> Path:
    """What the command line writes for the index in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inspect.py", str(folder / "index"), "--out", str(folder / "page.html"), *more])
        assert inspect.main() == 0
    return folder / "page.html"


def kept(rows: pa.Table, own: Bounds, later: Bounds) -> list[bool]:
    """Which rows are kept where operators have the bounds `own` and the recipe those of `later`, one after another."""
    bounds = {name: {**said, **own.get(name, {})} for name, said in judged.OPERATORS.items() if "off" not in said}
    return [_keeps(row, bounds, later) for row in rows.to_pylist()]


def _keeps(row: dict[str, Any], bounds: Bounds, later: Bounds) -> bool:
    usable = [True] * len(row["captions"])
    exempt = judged.EXEMPT if row["source"] != judged.FIRST else ()
    for name, said in bounds.items():
        score = row.get(f"score.{name}")
        if name in exempt or said.get("of") == "tag":
            continue
        if said.get("of") == "captions":
            before = any(usable)
            usable = [ok and _passes(one, said, True) for ok, one in zip(usable, score, strict=True)]
            passes = any(usable) or not before
        elif name in ("broken", "near_duplicate"):  # of no bound, or of samples beside each other
            passes = row[f"verdict.{name}"] is not False
        else:
            passes = _passes(score, said, True)
        if not passes:
            return False
    return all(_selects(row[f"score.{name}"], said, usable) for name, said in later.items())


def _selects(score: Any, said: Mapping[str, float], usable: list[bool]) -> bool:
    if not isinstance(score, list):
        return _passes(score, said, False)
    usable[:] = [ok and _passes(one, said, False) for ok, one in zip(usable, score, strict=True)]
    return any(usable)


def _passes(score: float | None, said: Mapping[str, float], unjudged: bool) -> bool:
    if score is None:
        return unjudged
    return said.get("min", score) <= score <= said.get("max", score)


def type_in(page: Any, name: str, bound: str, value: str) -> None:
    """Set a bound by its field, as people do."""
    place = {"min": 0, "max": 1}[bound]
    field = page.find_elements(By.CSS_SELECTOR, f'[data-name="{name}"] .bounds input')[place]
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", field)
    field.clear()
    field.send_keys(value, Keys.TAB)
    settle(page)


def settle(page: Any) -> None:
    """The page draws at the next frame."""
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def would_keep(page: Any) -> int:
    said = page.find_element(By.ID, "would-keep").text
    found = re.search(r"would keep (?:about )?([\d,]+)", said)
    assert found, said
    return int(found[1].replace(",", ""))


def texts(page: Any, selector: str) -> list[str]:
    return [one.get_attribute("textContent") for one in page.find_elements(By.CSS_SELECTOR, selector)]


def test_imported_by_a_script_beside_it_the_file_is_the_librarys_inspect() -> None:
    """Python puts launch/ first on the path of every script in it, so all that they import finds launch/inspect.py."""
    code = (
        "import sys; sys.modules.pop('inspect', None); sys.path.insert(0, 'launch');"
        "import inspect, dataclasses, typing;"
        "assert sys.modules['inspect'] is inspect and 'launch' in sys.path;"
        "print(inspect.__file__, inspect.__spec__.name, inspect.signature(inspect.getsource))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout.split()[0] and done.stdout.split()[1:] == ["inspect", "(object)"]


def test_the_funnel_adds_up_and_says_what_the_index_says(page: Any, made: tuple[Path, pa.Table]) -> None:
    rows = made[1].to_pylist()
    found = {
        row.get_attribute("data-name"): [
            cell.get_attribute("textContent") for cell in row.find_elements(By.CSS_SELECTOR, "td.number")
        ]
        for row in page.find_elements(By.CSS_SELECTOR, ".funnel tbody tr[data-name]")
    }
    left = ROWS
    for name, said in judged.OPERATORS.items():
        if said.get("of") == "tag":
            continue
        dropped = sum(row["dropped_by"] == name for row in rows)
        left -= dropped
        shown = "off" if "off" in said else f"−{dropped}" if dropped else "0"
        assert found[name] == [shown, str(left)]
    assert left == sum(row["kept"] for row in rows)
    assert found["kept"][1] == str(left) and found["in"][1] == str(ROWS)
    assert texts(page, ".top dd")[1].startswith(str(left))


def test_histograms_hold_every_score_once_and_part_at_the_bounds(page: Any, made: tuple[Path, pa.Table]) -> None:
    for judge in page.execute_script("return JUDGES.filter(judge => judge.sides)"):
        scores = made[1][f"score.{judge['name']}"].to_pylist()
        flat = [one for row in scores for one in (row if isinstance(row, list) else [row]) if one is not None]
        assert sum(judge["counts"]) == len(flat) == judge["judged"]
        for bound, at in judge["bounds"].items():
            low = [one < at if bound == "min" else one <= at for one in flat]
            edge = min(range(len(judge["edges"])), key=lambda place: abs(judge["edges"][place] - at))
            assert sum(judge["counts"][:edge]) == sum(low), judge["name"]


def test_unmoved_nothing_is_said_and_a_moved_bound_keeps_what_its_scores_say(
    page: Any, made: tuple[Path, pa.Table]
) -> None:
    assert not page.find_element(By.CSS_SELECTOR, ".what-if").is_displayed()
    moves: list[tuple[str, str, float]] = [
        ("clarity", "min", 3.5),
        ("contrast_of_mine", "max", 0.75),
        ("file_size", "min", 100),
        ("token_length", "max", 30),
        ("likeness_of_mine", "min", 0.5),
    ]
    own: dict[str, dict[str, float]] = {}
    for name, bound, value in moves:
        type_in(page, name, bound, str(value))
        own.setdefault(name, {})[bound] = value
        assert would_keep(page) == sum(kept(made[1], own, {})), name
    later = {"near_duplicate": {"min": 12.0}, "clarity": {"max": 5.5}, "token_length": {"min": 10}}
    for name, said in later.items():
        for bound, value in said.items():
            type_in(page, name, bound, str(value))
    assert would_keep(page) == sum(kept(made[1], own, later))
    assert " ".join(page.find_element(By.ID, "toml").text.split()) == (
        "[operators.file_size] min = 100 [operators.clarity] min = 3.5 [operators.contrast_of_mine] max = 0.75 "
        "[operators.token_length] max = 30 [operators.likeness_of_mine] min = 0.5 [recipe.thresholds] "
        "clarity = { max = 5.5 } token_length = { min = 10 } near_duplicate = { min = 12 }"
    )
    page.find_element(By.XPATH, "//button[text()='Reset']").click()
    settle(page)
    assert not page.find_element(By.CSS_SELECTOR, ".what-if").is_displayed()


def test_a_slider_moves_by_keys_and_says_what_it_is(page: Any, made: tuple[Path, pa.Table]) -> None:
    slider = page.find_element(By.CSS_SELECTOR, '[data-name="clarity"] input.min')
    assert slider.get_attribute("aria-label") == "at least, clarity"
    slider.send_keys(Keys.PAGE_UP, Keys.ARROW_RIGHT)
    settle(page)
    field = page.find_element(By.CSS_SELECTOR, '[data-name="clarity"] .bounds input')
    value = float(field.get_attribute("value"))
    assert value > 2.3 and slider.get_attribute("aria-valuetext") == f"{value:g}"
    assert would_keep(page) == sum(kept(made[1], {"clarity": {"min": value}}, {}))
    slider.send_keys(Keys.HOME)
    settle(page)
    lowest = min(one for one in made[1]["score.clarity"].to_pylist() if one is not None)
    assert would_keep(page) == sum(kept(made[1], {"clarity": {"min": lowest}}, {}))


def test_beside_a_line_are_the_closest_scores_with_their_pictures(page: Any, made: tuple[Path, pa.Table]) -> None:
    scores = sorted(one for one in made[1]["score.clarity"].to_pylist() if one is not None)
    below = [one for one in scores if one < 2.3][-6:]
    above = [one for one in scores if one >= 2.3][:6]
    shown = [
        [float(text) for text in texts(page, f'[data-name="clarity"] figure.{side} .number')]
        for side in ("below", "above")
    ]
    assert shown == [pytest.approx(below, rel=1e-3), pytest.approx(above, rel=1e-3)]
    assert page.execute_script(
        "return [...document.querySelectorAll('[data-name=\"clarity\"] .shot img')]"
        ".map(image => image.src.startsWith('data:image/webp') && image.decode().then(() => 1)).length"
    ) == len(below + above)


def test_words_of_strangers_are_text_and_nothing_else(page: Any, made: tuple[Path, pa.Table]) -> None:
    shots = page.find_elements(By.CSS_SELECTOR, "#captions .shot")
    shown = set()
    for number in range(0, len(shots)):
        page.execute_script("arguments[0].click()", shots[number])
        dialog = page.find_element(By.CSS_SELECTOR, "dialog[open]")
        shown |= {one.get_attribute("textContent") for one in dialog.find_elements(By.CSS_SELECTOR, ".words")}
        dialog.find_element(By.XPATH, ".//button[text()='Close']").click()
        settle(page)
    type_in(page, "clarity", "min", "5")
    assert page.execute_script("return window.fired") is None
    assert len(shown & set(judged.HOSTILE)) >= 5
    assert judged.HOSTILE[0] in texts(page, '[data-shares="source"] tbody th')
    assert judged.HOSTILE[4] in texts(page, '[data-shares="script_of_mine"] tbody th')
    assert not page.find_elements(By.CSS_SELECTOR, "img[src='x'], dialog, main script")
    assert page.execute_script("return document.scripts.length") == 2
    far = (
        "return performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith('data:'))"
    )
    assert page.execute_script(far) == []
    assert page.get_log("browser") == []


def test_the_policy_stops_what_is_not_the_pages_own(page: Any) -> None:
    page.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.fired = 10';"
        "document.body.append(script); const image = new Image(); image.src = 'https://example.invalid/x.png';"
        "document.body.append(image); image.setAttribute('onerror', 'window.fired = 11')"
    )
    settle(page)
    assert page.execute_script("return window.fired") is None
    refused = " ".join(entry["message"] for entry in page.get_log("browser"))
    assert "script-src" in refused and "img-src" in refused


def test_nothing_is_wider_than_the_view_and_both_schemes_are_readable(page: Any) -> None:
    type_in(page, "clarity", "min", "5")
    try:
        for width, name in ((1280, "dark"), (400, "light"), (400, "dark")):
            size(page, width, 900)
            scheme(page, name)
            settle(page)
            assert page.execute_script("return document.documentElement.scrollWidth") <= width
            for element in ("body", ".meta", ".dropped", ".kept", ".lead"):
                assert contrast(page, element) >= 4.5, (name, element)
    finally:
        size(page, 1280, 900)
        scheme(page, "light")


def contrast(page: Any, selector: str) -> float:
    """WCAG 2's contrast of an element's text with what is behind it."""
    ink, paper = page.execute_script(
        "let one = document.querySelector(arguments[0]); const ink = getComputedStyle(one).color;"
        "while (one && getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)') one = one.parentElement;"
        "return [ink, getComputedStyle(one || document.body).backgroundColor]",
        selector,
    )
    light, dark = sorted((_luminance(ink), _luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(level) / 255 for level in re.findall(r"\d+", colour)[:3]]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_of_a_large_set_a_fixed_sample_is_counted_and_its_error_said(
    chrome: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "SAMPLED", 2000)
    rows = judged.table(12_000, seed=3, hostile=False)
    judged.index(tmp_path / "index", rows)
    path = run(tmp_path)
    first = path.read_bytes()
    assert run(tmp_path).read_bytes() == first
    chrome.get(path.as_uri())
    type_in(chrome, "clarity", "min", "3.2")
    said = chrome.find_element(By.ID, "would-keep").text
    error = int(re.search(r"± ([\d,]+)", said)[1].replace(",", ""))  # type: ignore[index]
    true = sum(kept(rows, {"clarity": {"min": 3.2}}, {}))
    assert 0 < abs(would_keep(chrome) - true) <= error < 600
    assert "fixed sample of 2,000, at 95%" in chrome.find_element(By.CSS_SELECTOR, ".what-if").text
    assert chrome.get_log("browser") == []


def test_without_a_source_the_page_is_made_and_says_why_there_are_no_pictures(chrome: Any, tmp_path: Path) -> None:
    judged.index(tmp_path / "index", judged.table(60))
    chrome.get(run(tmp_path).as_uri())
    assert "give --config or --source" in texts(chrome, ".notice")[0]
    assert "give --config" in texts(chrome, "#mixture .notice")[0]
    chrome.get(run(tmp_path, "--source", str(tmp_path / "gone")).as_uri())
    assert str(tmp_path / "gone") in texts(chrome, ".notice")[0]
    assert set(texts(chrome, ".shot .missing"))
    assert chrome.get_log("browser") == []


def test_what_the_recipe_plans_stands_beside_what_the_plan_makes_and_a_run_trained_on(
    chrome: Any, tmp_path: Path
) -> None:
    judged.index(tmp_path / "index", judged.table(600, hostile=False))
    steps = [{"kind": "step", "loss_by_bucket": {"256x256": [0.5, 9], "320x208": [0.5, 3]}}, {"kind": "validation"}]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in steps))
    config = ["--config", str(ROOT / "launch/configs/smoke.toml"), "--metrics", str(tmp_path)]
    path = run(tmp_path, "recipe.classes={ script_of_mine = { english = 3, chinese = 1 } }", *config)
    chrome.get(path.as_uri())
    found = chrome.execute_script("return FACTS.mixture")
    shares = {
        one["name"]: {row["name"]: (row["planned"], row["actual"]) for row in one["rows"]} for one in found["tables"]
    }
    assert shares["caption split"]["raw"] == (pytest.approx(2 / 3), pytest.approx(2 / 3, abs=0.05))
    assert shares["script_of_mine"]["english"] == (0.75, pytest.approx(0.75, abs=0.05))
    assert sum(planned for planned, _ in shares["bucket"].values()) == pytest.approx(1)
    assert {name: actual for name, (_, actual) in shares["bucket"].items() if actual} == {
        "256x256": 0.75,
        "320x208": 0.25,
    }
    assert "by bucket 1 steps of" in found["actual"]
    assert texts(chrome, '[data-mixture="script_of_mine"] tbody tr[data-name="chinese"] .number')[0] == "25.0%"
    chrome.get(run(tmp_path, "recipe.classes={ script_of_mine = { english = 3, dutch = 1 } }", *config).as_uri())
    assert "recipe.classes.script_of_mine.dutch" in texts(chrome, "#mixture .notice")[0]
    assert chrome.get_log("browser") == []


def test_a_wrong_index_or_command_line_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    with pytest.raises(IndexFormatError, match=r"holds no generation; run launch/curate\.py first"):
        run(tmp_path)
    judged.index(tmp_path / "index", judged.table(20))
    with pytest.raises(IndexFormatError, match="gen-00009"):
        run(tmp_path, "--generation", "gen-00009")
    with pytest.raises(ValueError, match="give --config too"):
        run(tmp_path, "run.seed=3")
    said = tmp_path / "index" / "gen-00001" / "generation.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"version": 1}))
    with pytest.raises(IndexFormatError, match="version 1, this release reads"):
        run(tmp_path)


def test_an_index_that_kept_nothing_or_knows_no_score_is_shown_too(chrome: Any, tmp_path: Path) -> None:
    rows = judged.table(5, hostile=False)
    none = pa.array([None] * 5, pa.float64())
    place = rows.schema.get_field_index("score.clarity")
    rows = rows.set_column(place, "score.clarity", none)
    write_generation(tmp_path / "index", rows, tokenizer="none", operators=judged.OPERATORS)
    chrome.get(run(tmp_path).as_uri())
    assert "0 samples scored, 5 not" in texts(chrome, "#score-clarity .meta")[0]
    assert chrome.get_log("browser") == []


def test_data_inside_of_the_page_cannot_end_it() -> None:
    text = embedded({"captions": list(judged.HOSTILE), "nul": "\0", "alone": 1e-9})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text)["captions"] == list(judged.HOSTILE)


def test_memory_does_not_hold_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch at a time is read, and what is kept of it is bounded: the sample, the shown rows, the counts."""
    monkeypatch.setattr(surveys, "SAMPLED", 50)
    judged.index(tmp_path / "index", judged.table(3000, hostile=False))
    rows = Rows.open(tmp_path / "index")
    found = surveys.survey(rows, judges(rows.operators), lambda height, width: f"{height}x{width}")
    assert found.rows == 3000 and found.sampled.table.num_rows == 50
    assert len(found.shown) < 200


def test_every_script_of_the_page_is_part_of_it() -> None:
    found = {path.stem for path in (ROOT / "launch" / "page" / "script").iterdir()}
    assert found == set(SCRIPTS)


def test_samples_that_an_operator_failed_on_are_counted_apart_and_its_bound_still_moves(
    chrome: Any, tmp_path: Path
) -> None:
    """As curation writes them: no score, no list of scores, and a no whose reason says so."""
    rows = judged.table(60, hostile=False).to_pylist()
    whole = [row for row in rows if row["kept"] and row["source"] == judged.FIRST and row["captions"]]
    for row, name in zip(whole, ("clarity", "clarity", "token_length"), strict=False):
        said = {f"score.{name}": None, f"verdict.{name}": False, f"reason.{name}": "failed: ValueError: of it"}
        row |= said | {"kept": False, "dropped_by": name, "reason": "failed: ValueError: of it"}
    whole[3] |= {"kept": False, "dropped_by": "script_of_mine", "reason": "failed: ValueError: of it"}
    table = pa.Table.from_pylist(rows, schema=schema(judged.OPERATORS))
    judged.index(tmp_path / "index", table)
    chrome.get(run(tmp_path).as_uri())
    found = {
        row.get_attribute("data-name"): [
            cell.get_attribute("textContent") for cell in row.find_elements(By.CSS_SELECTOR, "td.number")
        ]
        for row in chrome.find_elements(By.CSS_SELECTOR, ".funnel tbody tr[data-name]")
    }
    lost = {name: cells[0] for name, cells in found.items() if name.endswith(", failed")}
    assert lost == {"clarity, failed": "−2", "token_length, failed": "−1", "script_of_mine, failed": "−1"}
    dropped = sum(row["dropped_by"] == "clarity" for row in rows) - 2
    assert found["clarity"][0] == (f"−{dropped}" if dropped else "0")
    assert found["kept"][1] == str(sum(row["kept"] for row in rows))
    assert texts(chrome, ".top dd")[3].startswith("4")
    judge = chrome.execute_script("return JUDGES.find(judge => judge.name === 'token_length')")
    scores = [one for row in rows for one in row["score.token_length"] or []]
    assert judge["judged"] == sum(judge["counts"]) == len(scores) and judge["steady"]
    type_in(chrome, "clarity", "min", "0.1")
    expected = sum(kept(table.filter(pa.array([row not in whole[:4] for row in rows])), {"clarity": {"min": 0.1}}, {}))
    assert would_keep(chrome) == expected
    type_in(chrome, "token_length", "max", "30")
    moved: Bounds = {"clarity": {"min": 0.1}, "token_length": {"max": 30}}
    assert would_keep(chrome) == sum(kept(table.filter(pa.array([row not in whole[:4] for row in rows])), moved, {}))
    said = chrome.find_element(By.ID, "toml").text
    assert "[operators.clarity]\nmin = 0.1" in said and "thresholds" not in said
    assert chrome.get_log("browser") == []


def test_splits_without_number_do_not_fill_the_page(tmp_path: Path) -> None:
    rows = judged.table(40, hostile=False).to_pylist()
    for number, row in enumerate(rows):
        for place, one in enumerate(row["captions"]):
            one["split"] = f"split-{number}-{place}"
    judged.index(tmp_path / "index", pa.Table.from_pylist(rows, schema=schema(judged.OPERATORS)))
    said = re.search(r'id="facts">(.*?)</script>', run(tmp_path).read_text("utf-8"), re.DOTALL)
    assert said
    captions = json.loads(said[1])["captions"]
    assert len(captions) == 25 and sum(one["count"] for one in captions.values()) == sum(
        len(row["captions"]) for row in rows
    )
    assert captions["(other)"]["count"] == sum(one["count"] for one in captions.values()) - 24
