"""Sources in a real S3-compatible store on loopback, and one whose answers fail, drip, stop short or never come."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from PIL import Image
from skimage import data

from producer.operator.stage import OperatorsConfig, build_stage
from producer.scoring import Job, fingerprint, read_scores, score_path, score_shard
from producer.source.reader import SourceConfig, open_source
from producer.source.shard import RawSample, Reader, SourceError, UnreadableError
from tests.unit.producer.faulty import Proxy, serving
from tests.unit.producer.test_sources import write_tar

# Of the client's libraries.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(data.astronaut()[9 * number :, 9 * number :]).resize((300, 280)).save(out, "JPEG")
    return out.getvalue()


NUMBERS = range(6)


def _long(value: str) -> Any:
    return pytest.param(value, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A bucket "photos" with the same six pictures as tars, as parquet and as a folder, behind a proxy."""
    folder = tmp_path_factory.mktemp("s3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "two",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        }.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        port = server.get_host_and_port()[1]
        members = [(f"{n}.jpg", picture(n)) for n in NUMBERS] + [(f"{n}.txt", f"words {n}".encode()) for n in NUMBERS]
        tar = write_tar(folder / "a.tar", sorted(members))
        rows = {"image": [picture(n) for n in NUMBERS], "caption": [f"words {n}" for n in NUMBERS]}
        plain = {"compression": "NONE", "use_dictionary": False}
        pq.write_table(pa.table(rows), folder / "plain.parquet", row_group_size=4, **plain)
        pq.write_table(pa.table(rows), folder / "packed.parquet", row_group_size=4, compression="zstd")
        files = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}", skip_instance_cache=True)
        files.mkdir("photos")
        files.mkdir("empty")
        for name in ("tars/a.tar", "table/plain.parquet", "table/packed.parquet"):
            files.pipe_file(f"photos/{name}", (folder / name.rpartition("/")[2]).read_bytes())
        for name, content in members:
            files.pipe_file(f"photos/folder/deep/{name}", content)
        assert tar.exists()
        with serving(Proxy(port)) as proxy:
            yield proxy
        server.stop()


@pytest.fixture
def proxy(bucket: Proxy) -> Proxy:
    """The bucket, nothing planted."""
    bucket.fault = lambda path, before: ""
    bucket.asked.clear()
    return bucket


def source(proxy: Proxy, kind: str, path: str = "", **remote: object) -> SourceConfig:
    places = {"tars": "s3://photos/tars", "parquet": "s3://photos/table/", "folder": "s3://photos/folder"}
    said = {"kind": kind, "path": path or places[kind], "remote": {"endpoint": proxy.url} | remote}
    return SourceConfig.model_validate_json(json.dumps(said))


def samples(reader: Reader) -> dict[str, RawSample]:
    return {sample.key: sample for shard in reader.shards() for sample in reader.samples(shard)}


@pytest.mark.parametrize("kind", ["tars", "parquet", "folder"])
def test_every_kind_of_source_is_listed_and_read_by_another_process_from_s3(proxy: Proxy, kind: str) -> None:
    """A worker has only the index's place of an image, and a reader that listed nothing."""
    found = samples(open_source(source(proxy, kind)))
    stems = {"tars": ["a"], "parquet": ["packed", "plain"], "folder": ["deep"]}[kind]
    assert len(found) == len(stems) * len(NUMBERS)
    proxy.asked.clear()
    worker = open_source(source(proxy, kind))
    for number in NUMBERS:
        for key, sample in sorted(found.items())[number :: len(NUMBERS)]:
            assert sample.captions == {"raw": f"words {number}"} and not sample.fault, key
            assert worker.read(sample.shard, sample.member, sample.offset, sample.size) == picture(number)
    if kind != "parquet":
        assert sum(proxy.asked.values()) == len(NUMBERS)


def test_a_plain_parquet_image_costs_one_range_request_and_a_packed_one_its_row_group(proxy: Proxy) -> None:
    found = samples(open_source(source(proxy, "parquet")))
    plain, packed = found["plain/00000005"], found["packed/00000005"]
    assert plain.offset > 0 and packed.offset == -1
    worker = open_source(source(proxy, "parquet"))
    proxy.asked.clear()
    assert worker.read(plain.shard, plain.member, plain.offset, plain.size) == picture(5)
    assert proxy.asked == {"/photos/table/plain.parquet": 1}


@pytest.mark.parametrize("kind", ["tars", _long("parquet"), _long("folder")])
def test_curation_scores_a_bucket_like_a_disk(proxy: Proxy, kind: str, tmp_path: Path) -> None:
    config = source(proxy, kind)
    job = Job(source=config, operators=OperatorsConfig(), scores=tmp_path, batch=4)
    shards = open_source(config).shards()
    for shard in shards:
        path = score_path(job, shard, fingerprint(job, build_stage(job.operators)))
        said = score_shard({"shard": json.dumps(shard), "path": str(path)}, job.model_dump_json())
        assert (said["samples"], said["failed"], said["error"]) == (len(NUMBERS), "{}", "")
        table = read_scores(path)
        assert table is not None and table["score.broken"].to_pylist() == [1.0] * len(NUMBERS)
        assert table["width"].to_pylist() == [300] * len(NUMBERS)
    assert shards == open_source(config).shards()


@pytest.mark.parametrize("fault", [_long("500"), "503", "short", "slow"])
def test_answers_that_fail_stop_short_or_come_too_late_are_asked_for_again(proxy: Proxy, fault: str) -> None:
    patient = source(proxy, "folder", request_s=2.0 if fault == "slow" else 20.0)
    found = samples(open_source(patient))
    proxy.asked.clear()
    proxy.fault = lambda path, before: fault if path.endswith("3.jpg") and before < 2 else ""
    sample = found["deep/3.jpg"]
    worker = open_source(patient)
    assert worker.read(sample.shard, sample.member, sample.offset, sample.size) == picture(3)
    # More where this machine itself was too slow for an answer.
    assert proxy.asked["/photos/folder/deep/3.jpg"] >= 3


def test_an_image_that_stays_unreadable_is_left_out_and_its_neighbours_are_not(proxy: Proxy, tmp_path: Path) -> None:
    config = source(proxy, "folder", tries=2)
    (shard,) = open_source(config).shards()
    proxy.fault = lambda path, before: "500" if path.endswith("3.jpg") else ""
    job = Job(source=config, operators=OperatorsConfig(), scores=tmp_path, batch=4)
    score_shard({"shard": json.dumps(shard), "path": str(tmp_path / "x.parquet")}, job.model_dump_json())
    table = read_scores(tmp_path / "x.parquet")
    assert table is not None
    notes = dict(zip(table["key"].to_pylist(), table["note.broken"].to_pylist(), strict=True))
    assert [key for key, note in notes.items() if note] == ["deep/3.jpg"]
    assert "cannot be read" in notes["deep/3.jpg"] and "(2 tries in" in notes["deep/3.jpg"]
    with pytest.raises(UnreadableError):
        open_source(config).read(shard.name, "3.jpg", 0, len(picture(3)))
    with pytest.raises(UnreadableError, match="there is no such"):
        open_source(config).read(shard.name, "nothing.jpg", 0, 10)
    with pytest.raises(UnreadableError, match="no longer the 9999999 bytes"):
        open_source(config).read(shard.name, "2.jpg", 0, 9999999)


@pytest.mark.parametrize("fault", ["500", "403"])
def test_a_store_that_fails_for_all_blames_no_sample(proxy: Proxy, fault: str) -> None:
    config = source(proxy, "folder", tries=2)
    reader = open_source(config)
    (shard,) = reader.shards()
    assert reader.read(shard.name, "2.jpg", 0, len(picture(2)))
    proxy.fault = lambda path, before: fault
    with pytest.raises(SourceError, match=r"source\.path: s3://photos/folder: cannot be read now") as caught:
        reader.read(shard.name, "3.jpg", 0, len(picture(3)))
    assert not isinstance(caught.value, UnreadableError)
    with pytest.raises(SourceError, match=r"source\.path: s3://photos/folder: "):
        reader.shards()


def test_what_is_missing_is_named(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, path, message in (
        ("tars", "s3://nowhere/x", "nowhere/x: there is no such bucket, folder or file"),
        ("tars", "s3://photos/nothing", "photos/nothing: there is no such"),
        ("tars", "s3://photos/folder", "holds no .tar, nothing to read"),
        ("parquet", "s3://empty", "holds no .parquet, nothing to read"),
        ("folder", "s3://empty", "holds no image"),
        ("tars", "gs://photos/x", "gs:// cannot be opened: .*gcsfs"),
        ("tars", "nosuch://photos/x", "scheme 'nosuch' is not among source.remote.schemes s3, gs, https"),
        ("tars", "s3://one:two@photos/x", "holds a user or a password"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            open_source(source(proxy, kind, path, tries=2)).shards()
        assert "one:two" not in str(caught.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(SourceError, match=r"no credentials .* set AWS_ACCESS_KEY_ID"):
        open_source(source(proxy, "tars", tries=2)).shards()
    assert open_source(source(proxy, "tars", anonymous=True)).shards()


def test_a_store_that_is_not_there_is_an_error_within_its_deadline(proxy: Proxy) -> None:
    config = source(proxy, "tars", endpoint="http://127.0.0.1:9", tries=3, list_s=20.0)
    with pytest.raises(SourceError, match=r"source\.path: s3://photos/tars: .*\(3 tries in"):
        open_source(config).shards()


def test_one_file_can_be_a_source_in_a_bucket(proxy: Proxy) -> None:
    config = source(proxy, "tars", "s3://photos/tars/a.tar")
    found = samples(open_source(config))
    assert len(found) == len(NUMBERS)
    one = found["a/3"]
    assert open_source(config).read(one.shard, one.member, one.offset, one.size) == picture(3)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
@pytest.mark.timeout(900)
def test_a_bucket_is_curated_whole_on_ray_and_gives_the_index_that_a_disk_gives(proxy: Proxy, tmp_path: Path) -> None:
    """Answers fail now and then; keys, hashes, scores and verdicts are those of the same tar on a disk."""
    from launch.make_encoders import make_tokenizer
    from producer.api.bucket import ASPECTS
    from producer.curate import CurateConfig, curate
    from producer.index import Index

    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    members = [(f"{n}.jpg", picture(n)) for n in NUMBERS] + [(f"{n}.txt", f"words {n}".encode()) for n in NUMBERS]
    write_tar(tmp_path / "disk" / "a.tar", sorted(members))
    proxy.fault = lambda path, before: "503" if before % 3 == 0 else ""
    indices = []
    for name, config in (("far", source(proxy, "tars")), ("near", SourceConfig(path=tmp_path / "disk"))):
        curate(
            config,
            CurateConfig(index=tmp_path / name / "index"),
            OperatorsConfig(),
            tokenizer=tmp_path / "tokenizer",
            resolutions=(256,),
            aspects=ASPECTS,
        )
        indices.append(Index.open(tmp_path / name / "index"))
    assert indices[0].table.equals(indices[1].table) and indices[0].id == indices[1].id
