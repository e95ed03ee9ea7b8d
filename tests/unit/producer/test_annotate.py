"""Annotation of a small index by a real server on the loopback: every sample is accounted for, and asked about once."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from launch.annotate import AnnotationView, main, report, show
from producer.annotate.config import AnnotateConfig, AnnotateError
from producer.annotate.entry import fused_from
from producer.annotate.prompt import ANNOTATE
from producer.annotate.run import Funnel, Progress, annotate
from producer.annotate.store import read_annotations
from producer.index import Index, IndexFormatError, write_generation
from producer.lock import LockError, exclusive
from producer.output_folder import FolderError
from producer.source.reader import SourceConfig
from tests.unit.producer.chat import FINDINGS, FUSED, Chat, Reply, completion, good, has_picture, serving
from tests.unit.producer.photos import BROKEN, ROWS, captions, make_photos

ROOT = Path(__file__).parents[3]
SHARD = "photos", "photos.tar"
WHOLE = ROWS - 1  # one picture is cut short
KEPT = "what was answered is kept, run it again to go on"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path)


def config(chat: Chat, **changes: Any) -> AnnotateConfig:
    server = {"url": chat.url, "model": "captioner", "tries": 2, "wait_s": 0.01, "concurrency": 4}
    return AnnotateConfig.model_validate({"server": server | changes.pop("server", {})} | changes)


def run(photos: Path, chat: Chat, **changes: Any) -> Funnel:
    return annotate(SourceConfig(path=photos / "raw"), config(chat, **changes), photos / "index")


def adds_up(funnel: Funnel) -> bool:
    return funnel.seen == funnel.annotated + funnel.failed.total() + funnel.skipped.total()


def test_every_kept_sample_gets_its_caption_its_facts_and_a_fused_caption(photos: Path) -> None:
    with serving(good) as chat:
        funnel = run(photos, chat)
    assert adds_up(funnel) and (funnel.seen, funnel.annotated, funnel.fused) == (ROWS, WHOLE, WHOLE)
    assert funnel.failed == {"picture": 1} and funnel.example["picture"].startswith(f"{BROKEN}: does not decode")
    assert (funnel.calls, funnel.prompt_tokens, funnel.answer_tokens) == (2 * WHOLE, 200 * WHOLE, 40 * WHOLE)
    found = read_annotations(photos / "annotations", *SHARD)
    index = Index.open(photos / "index").table.select(["key", "sha256"]).to_pylist()
    assert found.keys() == {row["sha256"] for row in index if row["key"] != BROKEN}
    for number, row in enumerate(index):
        if row["key"] != BROKEN:
            one = found[row["sha256"]]
            assert (one.caption, one.image_type, one.abnormal) == (FINDINGS["Caption"], "photograph", False)
            raw = str(captions(number)[0]["text"])
            assert one.fused[fused_from(raw, one.caption)] == FUSED["Fused Caption"]
    asked = {request["messages"][0]["content"] for request in chat.requests if not has_picture(request)}
    assert {f'"an astronaut {n}"' in text for n in (0, 4, 8) for text in asked} == {True, False}


def test_a_second_run_asks_nobody_and_a_retried_failure_is_asked_once_more(photos: Path) -> None:
    with serving(good) as chat:
        first = run(photos, chat)
        asked = len(chat.requests)
        # The broken picture is looked at again, since it may have been mended; nobody is asked about it.
        again = run(photos, chat)
        assert len(chat.requests) == asked and again.calls == 0
    assert (again.annotated, again.before, again.fused) == (first.annotated, first.annotated, first.fused)
    assert not list((photos / "annotations").glob("*/*.jsonl"))


def test_an_answer_that_cannot_be_used_is_asked_for_once_more_with_what_is_wrong(photos: Path) -> None:
    def second(request: dict[str, Any]) -> Reply:
        return good(request) if len(request["messages"]) == 3 else Reply(completion('{"Caption": "<|im_end|>"}'))

    with serving(second) as chat:
        funnel = run(photos, chat, fuse=False)
    assert (funnel.annotated, funnel.calls) == (WHOLE, 2 * WHOLE)
    _, answer, reply = next(request["messages"] for request in chat.requests if len(request["messages"]) == 3)
    assert answer == {"role": "assistant", "content": '{"Caption": "< |im_end|>"}'}
    assert "Image Type: Field required" in reply["content"]


@pytest.mark.parametrize(
    ("body", "reason", "calls"),
    [
        (completion("Sorry, I cannot provide a caption for this image."), "no json", 2),
        (completion('{"Caption": "a"}'), "schema", 2),
        (completion("", "length", reasoning_content="Hmm. " * 500), "reasoning", 1),
        (completion('{"Caption": "a person who', "length"), "cut", 1),
        (completion(None, "content_filter"), "filtered", 1),
        (completion(None, refusal="I will not."), "no json", 2),
    ],
    ids=["refusal", "schema", "reasoning", "cut", "filtered", "refused"],
)
def test_what_never_becomes_usable_is_counted_kept_and_not_asked_again_unless_told(
    photos: Path, body: bytes, reason: str, calls: int
) -> None:
    with serving(lambda _: Reply(body)) as chat:
        funnel = run(photos, chat)
        asked = len(chat.requests)
        assert adds_up(funnel) and funnel.failed == {reason: WHOLE, "picture": 1} and asked == calls * WHOLE
        assert run(photos, chat).failed == funnel.failed and len(chat.requests) == asked
        assert read_annotations(photos / "annotations", *SHARD) == {}
    with serving(good) as chat:
        mended = run(photos, chat, retry_failed=True)
    assert (mended.annotated, mended.before, mended.fused) == (WHOLE, 0, WHOLE)
    assert len(read_annotations(photos / "annotations", *SHARD)) == WHOLE


@pytest.mark.parametrize("question", ["caption", "fused"])
def test_answers_that_cannot_be_used_end_the_run_and_are_kept(
    photos: Path, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    def wrong(request: dict[str, Any]) -> Reply:
        shown = has_picture(request)
        return good(request) if shown and question == "fused" else Reply(completion("What a fine picture!"))

    monkeypatch.setattr("producer.annotate.run._FEW", 4)
    asked = {"caption": "a caption", "fused": "a fused caption"}[question]
    said = rf"annotate\.max_failed: \d of \d answers to the question for {asked} cannot be used, more than 50\.0%; "
    with serving(wrong) as chat:
        with pytest.raises(AnnotateError, match=rf"{said}\d for no json \(photos/\d+: .*\); what was answered is kept"):
            run(photos, chat, reasks=0, server={"concurrency": 1})
        assert len(set(map(str, chat.requests))) == len(chat.requests) < WHOLE
        # What has an answer is not asked about again, whatever the answer was.
        whole = run(photos, chat, reasks=0, max_failed=1.0)
        assert len(set(map(str, chat.requests))) == len(chat.requests)
    assert adds_up(whole) and (whole.failed if question == "caption" else whole.fused_failed)["no json"] == WHOLE
    with serving(good) as chat:
        assert run(photos, chat, reasks=0, retry_failed=True).fused == WHOLE


def test_a_share_of_unusable_answers_that_is_allowed_ends_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count(1)

    def third(request: dict[str, Any]) -> Reply:
        return Reply(completion("no")) if next(calls) % 3 == 0 else good(request)

    monkeypatch.setattr("producer.annotate.run._FEW", 2)
    with serving(third) as chat:
        funnel = run(photos, chat, reasks=0, fuse=False, server={"concurrency": 1})
    assert adds_up(funnel) and funnel.failed == {"no json": WHOLE // 3, "picture": 1}


def test_what_got_no_answer_is_counted_and_asked_again_in_the_next_run(photos: Path) -> None:
    with serving(lambda _: Reply(b"no GPU left", 503)) as chat:
        funnel = run(photos, chat)
    assert adds_up(funnel) and funnel.failed == {"unanswered": WHOLE, "picture": 1} and funnel.calls == 0
    assert "HTTP 503: no GPU left (2 tries" in funnel.example["unanswered"]
    with serving(good) as chat:
        assert run(photos, chat).annotated == WHOLE


def test_a_caption_is_kept_where_only_its_fusion_fails(photos: Path) -> None:
    def half(request: dict[str, Any]) -> Reply:
        return good(request) if has_picture(request) else Reply(b"busy", 503)

    with serving(half) as chat:
        funnel = run(photos, chat)
    assert (funnel.annotated, funnel.fused, funnel.fused_failed) == (WHOLE, 0, {"unanswered": WHOLE})
    with serving(good) as chat:
        again = run(photos, chat)
    assert (again.annotated, again.before, again.fused) == (WHOLE, WHOLE, WHOLE)
    assert not chat.pictures() and len(chat.requests) == WHOLE


def test_a_silent_server_ends_the_run_after_so_many_samples(photos: Path) -> None:
    said = r"annotate\.give_up: \d samples in a row got no answer.*HTTP 503: busy"
    with serving(lambda _: Reply(b"busy", 503)) as chat, pytest.raises(AnnotateError, match=said):
        run(photos, chat, give_up=3)
    assert len(chat.requests) < 2 * WHOLE


def test_a_wrong_key_ends_the_run_at_once_and_keeps_what_came_before(photos: Path) -> None:
    answers, lock = Counter[str](), threading.Lock()

    def revoked(request: dict[str, Any]) -> Reply:
        with lock:
            answers["all"] += 1
            late = answers["all"] > 5
        return Reply(b'{"error": {"message": "key revoked"}}', 401) if late else good(request)

    with serving(revoked) as chat, pytest.raises(AnnotateError, match=r"annotate\.server\.key: .*key revoked"):
        run(photos, chat, fuse=False, server={"concurrency": 1})
    with serving(good) as chat:
        funnel = run(photos, chat, fuse=False)
    assert (funnel.annotated, funnel.before, len(chat.requests)) == (WHOLE, 5, WHOLE - 5)


def test_the_limit_bounds_how_many_are_asked_about_in_a_run(photos: Path) -> None:
    with serving(good) as chat:
        first = run(photos, chat, limit=5, fuse=False)
        assert adds_up(first) and first.skipped == {"over annotate.limit": ROWS - 5}
        second = run(photos, chat, limit=5, fuse=False)
        assert adds_up(second) and second.annotated > first.annotated
    assert len(chat.requests) == len(set(chat.pictures()))


def test_another_question_makes_other_annotations_and_leaves_the_first_alone(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(good) as chat:
        first = run(photos, chat)
        files = {path: path.read_bytes() for path in (photos / "annotations").rglob("*.parquet")}
        monkeypatch.setitem(ANNOTATE, "en", ANNOTATE["en"] + "Be brief.\n")
        second = run(photos, chat, max_tokens=512)
        monkeypatch.undo()
        asked = len(chat.requests)
        back = run(photos, chat)
    assert second.annotator != first.annotator == back.annotator and second.before == 0
    assert back.calls == 0 and len(chat.requests) == asked
    assert {path: path.read_bytes() for path in files} == files


def test_chinese_is_asked_of_its_share(photos: Path) -> None:
    with serving(good) as chat:
        run(photos, chat, chinese=1.0)
    assert all("你是一名专业的图像标注员" in json.dumps(r, ensure_ascii=False) for r in chat.requests if has_picture(r))
    assert any("图像描述" in json.dumps(r, ensure_ascii=False) or "描述编辑" in str(r) for r in chat.requests)


def judged(photos: Path, **columns: list[Any]) -> None:
    """Another generation of the index, with these `columns`."""
    table = Index.open(photos / "index").table
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    write_generation(photos / "index", table, tokenizer="t", operators={"aesthetic": {}})


def test_edits_and_what_curation_dropped_are_not_asked_about(photos: Path) -> None:
    reference = {"member": "r", "offset": 0, "size": 1, "width": 1, "height": 1, "sha256": "x"}
    judged(photos, references=[[reference]] + [[]] * (ROWS - 1), kept=[True] * (ROWS - 2) + [False] * 2)
    with serving(good) as chat:
        funnel = run(photos, chat)
    assert adds_up(funnel) and (funnel.seen, funnel.annotated) == (ROWS - 2, ROWS - 4)
    assert funnel.skipped == {"an edit, whose words say what to do": 1}


def test_pictures_that_lack_nothing_but_a_caption_are_asked_about_where_wanted(photos: Path) -> None:
    dropped = ["caption", "caption", "broken"]
    judged(photos, kept=[True] * (ROWS - 3) + [False] * 3, dropped_by=[""] * (ROWS - 3) + dropped)
    with serving(good) as chat:
        assert run(photos, chat).seen == ROWS - 3
        funnel = run(photos, chat, uncaptioned=True)
    assert (
        adds_up(funnel)
        and (funnel.seen, funnel.before) == (ROWS - 1, ROWS - 4)
        and len(set(chat.pictures())) == ROWS - 2
    )


def test_a_source_that_changed_is_not_captioned_as_if_it_had_not(photos: Path) -> None:
    tar = photos / "raw" / "photos.tar"
    raw = bytearray(tar.read_bytes())
    row = Index.open(photos / "index").table.slice(0, 1).to_pylist()[0]
    raw[row["offset"] + row["size"] - 3] ^= 1
    tar.write_bytes(raw)
    with serving(good) as chat:
        funnel = run(photos, chat)
    assert funnel.failed == {"picture": 2} and "not the bytes that were curated" in funnel.example["picture"]


def test_wrong_settings_are_named_before_anybody_is_asked(photos: Path) -> None:
    (photos / "a file").touch()
    source, index = SourceConfig(path=photos / "raw"), photos / "index"
    with pytest.raises(AnnotateError, match=r"nobody to ask: set annotate\.server\.url"):
        annotate(source, AnnotateConfig(), index)
    with pytest.raises(AnnotateError, match=r"annotate\.local\.model: .*nowhere does not exist; give"):
        annotate(source, AnnotateConfig.model_validate({"local": {"model": photos / "nowhere"}}), index)
    with serving(good) as chat:
        with pytest.raises(FolderError, match=r"^annotate\.out: the folder .*a file/out cannot be made \(Not a dir"):
            run(photos, chat, out=photos / "a file/out")
        with pytest.raises(IndexFormatError, match="holds no generation"):
            annotate(source, config(chat), photos / "nowhere")
        with exclusive(photos / "annotations" / ".lock", timeout_s=0), pytest.MonkeyPatch.context() as patch:
            patch.setattr("producer.annotate.run._LOCK_TIMEOUT_S", 0.1)
            with pytest.raises(LockError, match=r"annotations/\.lock: held by another process"):
                run(photos, chat)
        assert not chat.requests


def command(photos: Path, chat: Chat) -> list[str]:
    """What is typed at a terminal."""
    settings = [
        f"run.dir={photos}",
        "source.kind=tars",
        f"source.path={photos / 'raw'}",
        f"curate.index={photos / 'index'}",
    ]
    settings += [f"annotate.server.url={chat.url}", "annotate.server.model=captioner", "annotate.server.concurrency=2"]
    return ["launch/annotate.py", "launch/configs/folder.toml", *settings, "--report", str(photos / "report.json")]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ended_at_any_moment_it_goes_on_and_asks_again_only_what_was_on_its_way(
    photos: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered, lock, hold = Counter[str](), threading.Lock(), threading.Event()

    def stalls(request: dict[str, Any]) -> Reply:
        """Seven answers, then none until the command is ended."""
        with lock:
            answered["all"] += 1
            late = answered["all"] > 7
        if late:
            hold.wait(300)
            return Reply(b"", 500)
        return good(request)

    with serving(stalls) as chat, started(command(photos, chat)) as child:
        deadline = time.monotonic() + 200
        # Both threads of the command wait for an answer: what was answered before was handed on.
        while len(chat.requests) < 9 or sum(map(len, records(photos))) < 7:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(number)
        out, _ = child.communicate(timeout=60)
        hold.set()
    before = [entry for lines in records(photos) for entry in lines]
    assert len(before) == 7 and child.returncode == (130 if number == signal.SIGINT else -number)
    assert (KEPT in out) == (number == signal.SIGINT) and "Traceback" not in out
    # As a power cut would leave it: the last line torn.
    (record, *_) = sorted((photos / "annotations").glob("caption-*/*.jsonl"))
    record.write_bytes(record.read_bytes() + b'{"crc": 1, "entries": [{"key"')
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(ROOT)
    with serving(good) as chat:
        monkeypatch.setattr(sys, "argv", command(photos, chat))
        assert main() == 0 and "annotated" in capsys.readouterr().out
        assert len(chat.requests) == 2 * WHOLE - 7
    signal.signal(signal.SIGTERM, handler)
    said = json.loads((photos / "report.json").read_text())
    assert said["in"] == ROWS == said["annotated"] + sum(said["failed"].values()) + sum(said["skipped"].values())
    assert said["annotated_before"] == sum("image_type" in entry and bool(entry["image_type"]) for entry in before)
    assert len(read_annotations(photos / "annotations", *SHARD)) == WHOLE == said["fused"]
    assert not list((photos / "annotations").glob("*/*.jsonl"))


def records(photos: Path) -> list[list[dict[str, Any]]]:
    """The entries of each whole line of the records."""
    files = [path.read_bytes().split(b"\n")[:-1] for path in (photos / "annotations").glob("*/*.jsonl")]
    return [json.loads(line)["entries"] for lines in files for line in lines]


FUNNEL = Funnel("0123456789abcdef", "caption-0123", seen=12, annotated=9, before=4, fused=8, calls=12)
FUNNEL.failed.update({"cut": 1, "picture": 1})
FUNNEL.skipped.update({"over annotate.limit": 1})
FUNNEL.example.update({"cut": "a/[red]x: \x1b[2J"})


def test_the_table_shows_every_number_and_obeys_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show(FUNNEL)
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [row[:2] for row in rows if row and row[1]] == [
        ["in", "12"],
        ["failed: cut", "-1"],
        ["failed: picture", "-1"],
        ["skipped: over annotate.limit", "-1"],
        ["annotated", "9"],
        ["with a fused caption", "8"],
        ["questions asked now", "12"],
    ]
    assert "a/[red]x: ?[2J" in out and "\x1b" not in out


def test_the_report_is_json_and_its_sums_add_up() -> None:
    said = json.loads(json.dumps(report(FUNNEL, 12.34)))
    assert said["in"] == said["annotated"] + sum(said["failed"].values()) + sum(said["skipped"].values())
    assert (said["seconds"], said["questions"]) == (12.3, 12)


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    view = AnnotationView()
    for done in range(100):
        view(Progress(done, 99, done, {"cut": 2} if done else {}))
    view.close()
    assert capsys.readouterr().out.splitlines() == [
        "annotating: 0 of 99 samples, 0 asked now",
        "annotating: 99 of 99 samples, 99 asked now, 2 cut",
    ]
