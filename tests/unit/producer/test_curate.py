"""Curation on a real local Ray: the planted faults are found, sums add up, and being killed changes nothing."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data

from launch.make_corpus import make_corpus
from producer.annotate.config import AnnotateConfig
from producer.annotate.run import annotate
from producer.api.bucket import ASPECTS
from producer.cluster import ClusterError
from producer.curate import CurateConfig, CurateError, Progress, curate
from producer.funnel import Funnel
from producer.index import Index
from producer.lock import LockError, exclusive
from producer.operator.pretrained import ModelError
from producer.operator.stage import OperatorsConfig
from producer.source.parquet import ParquetConfig
from producer.source.reader import AlsoConfig, SourceConfig
from producer.source.shard import SourceError
from producer.tokens import TokenizerError, count_tokens
from tests.unit.producer.chat import FINDINGS, Reply, completion, has_picture, serving
from tests.unit.producer.test_sources import write_tar

ROOT = Path(__file__).parents[3]

# Ray Data warns of defaults of its own when it copies its settings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from launch.make_encoders import make_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke corpus, and 20 more tars so that there is a while in which to interrupt."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    draw = np.random.default_rng(0)
    whole = Image.fromarray(data.retina())
    for number in range(20):
        members: list[tuple[str, bytes]] = []
        for stem in range(4):
            left, top = (int(draw.integers(0, 700)) for _ in range(2))
            out = io.BytesIO()
            whole.crop((left, top, left + 700, top + 700)).rotate(int(draw.integers(0, 360))).save(out, "JPEG")
            members += [(f"{stem}.jpg", out.getvalue()), (f"{stem}.txt", b"A part of a retina.")]
        write_tar(folder / f"retina-{number:05d}.tar", members)
    return folder


def run(source: Path, folder: Path, tokenizer: Path, **changes: object) -> tuple[Funnel, list[Progress]]:
    said: list[Progress] = []
    operators = changes.pop("operators", {})
    funnel = curate(
        SourceConfig(path=source),
        CurateConfig.model_validate({"index": folder / "index"} | changes),
        OperatorsConfig.model_validate(operators),
        tokenizer=tokenizer,
        resolutions=(256,),
        aspects=ASPECTS,
        progress=said.append,
    )
    return funnel, said


@pytest.fixture(scope="module")
def curated(corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Funnel]]:
    """The corpus curated once on a local Ray."""
    folder = tmp_path_factory.mktemp("curated")
    funnel, said = run(corpus, folder, tokenizer)
    assert said[0] == Progress("scoring", 0, funnel.shards, 0)
    assert [one.stage for one in said[-2:]] == ["judging", "writing"]
    assert [one.done for one in said[: funnel.shards + 1]] == list(range(funnel.shards + 1))
    # Scored to the end, all is known but what comparisons drop.
    alone = {name: number for name, number in funnel.dropped.items() if number and not name.endswith("_duplicate")}
    assert said[funnel.shards].stage == "scoring" and said[funnel.shards].lost == alone and len(alone) > 2
    yield folder, funnel


def test_every_planted_fault_is_dropped_by_the_operator_for_it_and_nothing_else_is(
    curated: tuple[Path, Funnel], corpus: Path
) -> None:
    folder, _ = curated
    rows = Index.open(folder / "index").table.select(["key", "kept", "dropped_by"]).to_pylist()
    said = json.loads((corpus / "planted.json").read_text())
    planted = {item["key"]: item["operator"] for item in said if item["stage"] == 1}
    ours = [row for row in rows if not row["key"].startswith("retina-")]
    assert {row["key"]: row["dropped_by"] for row in ours if not row["kept"]} == planted


def test_the_funnel_adds_up_and_agrees_with_the_index(curated: tuple[Path, Funnel]) -> None:
    folder, funnel = curated
    index = Index.open(folder / "index")
    kept = index.table["kept"].to_pylist()
    assert funnel.seen == index.table.num_rows == funnel.kept + sum(funnel.dropped.values())
    assert funnel.kept == sum(kept) == sum(funnel.buckets.values()) >= 150
    assert len(funnel.buckets) >= 5
    assert set(funnel.example) == {name for name, number in funnel.dropped.items() if number}
    assert funnel.off == {"nsfw": "no classifier: set operators.nsfw.model to a folder"}
    assert (funnel.generation, funnel.shards, funnel.scored) == (index.id, 26, 26)


def test_captions_carry_their_length_by_the_real_tokenizer(curated: tuple[Path, Funnel], tokenizer: Path) -> None:
    folder, _ = curated
    captions = [one for row in Index.open(folder / "index").table["captions"].to_pylist() for one in row]
    assert {one["split"] for one in captions} == {"raw", "recaption"}
    assert [one["tokens"] for one in captions] == count_tokens(tokenizer, [one["text"] for one in captions])
    assert min(one["tokens"] for one in captions) > 0


def test_running_again_scores_nothing_starts_no_ray_and_keeps_the_generation(
    curated: tuple[Path, Funnel], corpus: Path, tokenizer: Path
) -> None:
    """Ray would refuse the address: it is not asked."""
    folder, first = curated
    again, said = run(corpus, folder, tokenizer, address="127.0.0.1:1")
    assert (again.scored, again.generation) == (0, first.generation)
    assert said[0].done == said[0].total and said[0].samples == first.seen
    assert len(list((folder / "index").glob("gen-*"))) == 1


def test_a_moved_threshold_makes_a_new_generation_from_the_stored_scores(
    curated: tuple[Path, Funnel], corpus: Path, tokenizer: Path
) -> None:
    folder, first = curated
    stricter, _ = run(corpus, folder, tokenizer, operators={"resolution": {"min": 300.0}}, address="127.0.0.1:1")
    assert stricter.scored == 0 and stricter.generation != first.generation
    assert stricter.dropped["resolution"] > first.dropped["resolution"]
    assert stricter.seen == stricter.kept + sum(stricter.dropped.values()) == first.seen
    back, _ = run(corpus, folder, tokenizer, address="127.0.0.1:1")
    assert back.generation == first.generation


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.producer.test_curate import run
print(run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))[0].generation)
"""


def start(source: Path, folder: Path, tokenizer: Path) -> subprocess.Popen[bytes]:
    """Curation as a process of its own group, as from a terminal."""
    command = [sys.executable, "-c", SCRIPT, str(source), str(folder), str(tokenizer)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


def scored(folder: Path) -> int:
    return len(list((folder / "curate").glob("scores/*/*.parquet")))


def wait_for(folder: Path, number: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while scored(folder) < number:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


CLUSTER = """
import sys
import ray
from producer.cluster import cluster
with cluster("local", object_store_bytes=100 << 20, setting="test"):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cluster_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of another process, on the loopback alone."""
    # Ray's switch for machines whose cluster is the loopback; else it looks for 127.0.0.1 at their other address.
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        yield child.stdout.readline().decode().strip()
        child.stdin.close()
        child.wait(30)


def test_interrupted_and_killed_it_goes_on_and_the_index_is_the_same_to_the_byte(
    curated: tuple[Path, Funnel], corpus: Path, tokenizer: Path, tmp_path: Path, cluster_address: str
) -> None:
    """Ctrl-C in the first run, SIGKILL in the second, and the third on a cluster that is joined by its address."""
    undisturbed, first = curated
    child = start(corpus, tmp_path, tokenizer)
    wait_for(tmp_path, 1, child)
    family = psutil.Process(child.pid).children(recursive=True)
    os.killpg(child.pid, signal.SIGINT)
    child.wait(60)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    before = scored(tmp_path)
    assert 1 <= before < first.shards

    child = start(corpus, tmp_path, tokenizer)
    wait_for(tmp_path, before + 1, child)
    child.kill()
    child.wait(60)
    assert not list((tmp_path / "index").glob("gen-*"))

    resumed, _ = run(corpus, tmp_path, tokenizer, address=cluster_address)
    assert 0 < resumed.scored < first.shards == first.scored
    assert not list((tmp_path / "curate").glob("scores/*/*.parquet.*"))
    for name in ("rows.parquet", "generation.json"):
        one, other = ((folder / "index/gen-00001" / name).read_bytes() for folder in (tmp_path, undisturbed))
        assert one == other


def test_settings_that_keep_nothing_are_an_error_with_the_counts(
    curated: tuple[Path, Funnel], corpus: Path, tokenizer: Path
) -> None:
    folder, first = curated
    with pytest.raises(CurateError, match=rf"nothing is kept of {first.seen} samples: .* by resolution"):
        run(corpus, folder, tokenizer, operators={"resolution": {"min": 9000.0}}, address="127.0.0.1:1")
    assert Index.open(folder / "index").id == first.generation


def test_a_source_of_too_many_broken_pictures_is_an_error_with_the_share(
    curated: tuple[Path, Funnel], corpus: Path, tokenizer: Path
) -> None:
    folder, first = curated
    share = f"{first.dropped['broken'] / first.seen:.1%}"
    with pytest.raises(CurateError, match=rf"curate\.max_broken: {share} of {first.seen} samples .* more than 1\.0%"):
        run(corpus, folder, tokenizer, max_broken=0.01, address="127.0.0.1:1")
    assert Index.open(folder / "index").id == first.generation


def test_a_source_whose_columns_are_misspelt_is_an_error_however_large_its_neighbour_is(
    curated: tuple[Path, Funnel], corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    folder, first = curated
    pq.write_table(pa.table({"image": [b"a picture"], "caption": ["a caption"]}), tmp_path / "one.parquet")
    other = AlsoConfig(path=tmp_path, kind="parquet", parquet=ParquetConfig(image="picture"))
    with pytest.raises(CurateError, match=r"100\.0% of 1 samples of source other .*no column 'picture' among image"):
        curate(
            SourceConfig(path=corpus, also={"other": other}),
            CurateConfig(index=folder / "index"),
            OperatorsConfig(),
            tokenizer=tokenizer,
            resolutions=(256,),
            aspects=ASPECTS,
        )
    assert Index.open(folder / "index").id == first.generation


def test_wrong_settings_are_named_before_ray_starts(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SourceError, match=r"source\.path: .*nowhere does not exist"):
        run(tmp_path / "nowhere", tmp_path, tokenizer)
    with pytest.raises(TokenizerError, match=r"encoder: .*nowhere holds no tokenizer_config\.json"):
        run(corpus, tmp_path, tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"operators\.nsfw\.model: .*nowhere does not exist"):
        run(corpus, tmp_path, tokenizer, operators={"nsfw": {"model": tmp_path / "nowhere"}})
    with pytest.raises(ClusterError, match=r"curate\.address: nobody answers at 127\.0\.0\.1:1 "):
        run(corpus, tmp_path, tokenizer, address="127.0.0.1:1")
    with exclusive(tmp_path / "curate" / ".lock", timeout_s=0), pytest.MonkeyPatch.context() as patch:
        patch.setattr("producer.curate._LOCK_TIMEOUT_S", 0.1)
        with pytest.raises(LockError, match=r"curate/\.lock: held by another process"):
            run(corpus, tmp_path, tokenizer)
    assert time.monotonic() - started < 30
    assert not list(tmp_path.glob("index/*"))


def test_annotations_join_the_next_generation_and_are_judged_as_other_captions(
    curated: tuple[Path, Funnel], corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """A real server on the loopback annotates what was kept; nothing is scored again, no Ray is asked."""
    folder, first = curated

    def answer(request: dict[str, Any]) -> Reply:
        """Every second picture is answered with a caption that repeats itself."""
        drawn = hashlib.sha256(json.dumps(request["messages"]).encode()).digest()[0] % 2
        caption = "a cat " * 300 if drawn and has_picture(request) else FINDINGS["Caption"]
        found = FINDINGS | {"Caption": caption, "Watermark List": ["a logo"]}
        return Reply(completion(json.dumps(found if has_picture(request) else {"Fused Caption": "A cup and a name."})))

    with serving(answer) as chat:
        config = AnnotateConfig.model_validate({"out": tmp_path, "server": {"url": chat.url, "model": "m"}})
        said = annotate(SourceConfig(path=corpus), config, folder / "index")
    assert said.annotated == said.seen == first.kept
    settings: dict[str, Any] = {"annotations": (tmp_path,), "address": "127.0.0.1:1"}
    operators = {"invalid_caption": {}, "token_length": {}}
    joined, _ = run(corpus, folder, tokenizer, operators=operators, **settings)
    index = Index.open(folder / "index")
    assert joined.scored == 0 and index.id == joined.generation != first.generation and first.annotated is None
    assert joined.seen == joined.kept + sum(joined.dropped.values()) == first.seen
    rows = [row for row in index.table.to_pylist() if row["tag.image_type"]]
    assert joined.annotated == sum(row["kept"] for row in rows) > 0
    assert len(rows) == said.annotated and {row["tag.watermark_list"] for row in rows} == {'["a logo"]'}
    captions = [{one["split"]: one for one in row["captions"]} for row in rows]
    assert {tuple(row) for row in captions} == {("fused", "raw", "recaption")}
    bad = [row["recaption"] for row in captions if row["recaption"]["text"].startswith("a cat")]
    assert 0 < len(bad) < len(rows) and not any(one["kept"] for one in bad)
    assert all(one["reason"].startswith("invalid_caption: repetition") for one in bad)
    assert [row["fused"]["tokens"] for row in captions] == [count_tokens(tokenizer, ["A cup and a name."])[0]] * len(
        rows
    )
    back, _ = run(corpus, folder, tokenizer, address="127.0.0.1:1")
    assert back.generation == first.generation
