"""Sources: every sample is listed once with its place and captions; what is odd or hostile is counted, not followed."""

import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from producer.source.folder import Folder
from producer.source.reader import SourceConfig, open_source
from producer.source.remote import FsspecStore, RemoteConfig
from producer.source.remote_folder import RemoteFolder
from producer.source.shard import RawSample, Reader, Shard, SourceError, is_inside
from producer.source.store import LocalStore
from producer.source.tars import DamageError, Tars, list_members

Members = list[tuple[str, bytes]]


def jpeg(size: tuple[int, int] = (64, 48), quality: int = 75) -> bytes:
    out = io.BytesIO()
    Image.fromarray(data.astronaut()).resize(size).save(out, "JPEG", quality=quality)
    return out.getvalue()


def write_tar(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read_all(reader: Reader) -> dict[str, RawSample]:
    found = [sample for shard in reader.shards() for sample in reader.samples(shard)]
    assert len({sample.key for sample in found}) == len(found)
    return {sample.key: sample for sample in found}


def one_tar(folder: Path, members: Members) -> dict[str, RawSample]:
    return read_all(Tars(LocalStore(write_tar(folder / "a.tar", members).parent)))


def test_a_tar_as_webdataset_writes_it_gives_every_image_and_caption(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "photos-00000.tar")) as writer:
        for number in range(5):
            writer.write(
                {
                    "__key__": f"album/{number:03d}",
                    "jpg": jpeg((64 + number, 48)),
                    "txt": f" caption {number}\n",
                    "json": {"captions": {"recaption": f"a longer caption {number}"}},
                }
            )
    reader = Tars(LocalStore(tmp_path))
    found = read_all(reader)
    assert sorted(found) == [f"photos-00000/album/{number:03d}" for number in range(5)]
    for number, sample in enumerate(found[key] for key in sorted(found)):
        assert sample.captions == {"raw": f"caption {number}", "recaption": f"a longer caption {number}"}
        assert reader.read(sample.shard, sample.member, sample.offset, sample.size) == jpeg((64 + number, 48))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_header_is_read_as_tarfile_reads_it(tmp_path: Path, form: int) -> None:
    long = "folder/" * 12 + "n" * (80 if form == tarfile.USTAR_FORMAT else 200)
    names = ["a.jpg", "./b.jpg", f"{long}.jpg"] + (["图片/猫.jpg"] if form != tarfile.USTAR_FORMAT else [])
    path = write_tar(tmp_path / "a.tar", [(name, jpeg()) for name in names], form)
    with path.open("rb") as file, tarfile.open(path) as tar:
        ours = [(member.name, member.offset, member.size) for member in list_members(file)]
        theirs = [(member.name.removeprefix("./"), member.offset_data, member.size) for member in tar]
    assert ours == theirs


def test_hostile_members_are_counted_and_never_lead_outside(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("../../climb.jpg", "/etc/absolute.jpg", "deep/../../climb.jpg", "fine.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg())
            tar.addfile(info, io.BytesIO(jpeg()))
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        nul = tarfile.TarInfo("nul.jpg")
        nul.pax_headers, nul.size = {"path": "nul\0.jpg"}, 3
        tar.addfile(nul, io.BytesIO(b"abc"))
    found = read_all(Tars(LocalStore(tmp_path)))
    assert len(found) == 8
    assert [key for key, sample in found.items() if not sample.fault] == ["a/fine"]
    assert all(is_inside(key) for key in found)
    assert sum("leads out" in sample.fault for sample in found.values()) == 4
    assert sum("not a plain file" in sample.fault for sample in found.values()) == 3


def test_a_damaged_header_costs_the_rest_of_its_tar_and_is_counted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", jpeg()) for n in range(4)])
    raw = bytearray(path.read_bytes())
    with path.open("rb") as file:
        third = list(list_members(file))[2]
    raw[third.offset - 512 + 100] ^= 1
    path.write_bytes(raw)
    found = read_all(Tars(LocalStore(tmp_path)))
    assert [key for key, sample in found.items() if not sample.fault] == ["a/0", "a/1"]
    assert "bad checksum" in found["a/(damaged)"].fault


@pytest.mark.parametrize("cut", [100, 512, 700])
def test_a_tar_that_ends_early_is_counted(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", jpeg()) for n in range(2)])
    with path.open("rb") as file:
        last = list(list_members(file))[1]
    path.write_bytes(path.read_bytes()[: last.offset - 512 + cut])
    found = read_all(Tars(LocalStore(tmp_path)))
    assert not found["a/0"].fault
    assert found["a/(damaged)"].fault


def test_lengths_that_headers_claim_are_not_believed(tmp_path: Path) -> None:
    """A member beyond the end, a pax record with a wild length, and a name header of a gigabyte."""
    for number, (kind, size, body) in enumerate(
        [
            (tarfile.REGTYPE, 1 << 40, b"x"),
            (tarfile.XHDTYPE, 20, b"99999999 path=a.jpg\n"),
            (tarfile.XHDTYPE, 20, b"3 size=00000000000\n\0"),
            (tarfile.XHDTYPE, 18, b"17 size=-1234567\n\0"),
            (tarfile.GNUTYPE_LONGNAME, 1 << 30, b"x"),
        ]
    ):
        info = tarfile.TarInfo("a.jpg")
        info.type, info.size = kind, size
        follow = tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT)
        raw = info.tobuf(tarfile.GNU_FORMAT) + body.ljust(512, b"\0") + follow + bytes(1024)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(raw)
        tracemalloc.start()
        with path.open("rb") as file, pytest.raises(DamageError):
            list(list_members(file))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=6), st.integers(0, 4096))
def test_any_damage_gives_members_or_a_named_error(flips: list[tuple[int, int]], cut: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "图" * 60 + ".jpg"):
            info = tarfile.TarInfo(name)
            info.size = 10
            tar.addfile(info, io.BytesIO(b"0123456789"))
    raw = bytearray(out.getvalue()[:4096])
    for position, value in flips:
        raw[position % len(raw)] = value
    try:
        for member in list_members(io.BytesIO(bytes(raw[:cut]))):
            assert member.offset + member.size <= cut
            member.name.encode()
    except DamageError as error:
        assert "byte" in str(error)


def test_samples_without_an_image_or_with_two_are_counted(tmp_path: Path) -> None:
    found = one_tar(
        tmp_path,
        [
            ("lone.txt", b"no image"),
            ("data.bin", b"0101"),
            ("README", b"not a sample, but no loss either"),
            ("pair.jpg", jpeg()),
            ("pair.png", jpeg()),
            ("twice.jpg", jpeg()),
            ("twice.jpg", jpeg()),
            (".hidden.jpg", jpeg()),
            ("good.JPG", jpeg()),
        ],
    )
    assert {key: sample.fault for key, sample in found.items()} == {
        "a/lone": "no image among its members (lone.txt)",
        "a/data": "no image among its members (data.bin)",
        "a/README": "no image among its members (README)",
        "a/pair": "2 images in one sample",
        "a/twice": "2 images in one sample",
        "a/good": "",
    }


@pytest.mark.parametrize(
    ("member", "content", "captions", "fault"),
    [
        ("txt", "一只猫".encode(), {"raw": "一只猫"}, ""),
        ("txt", b"\xef\xbb\xbfwith a mark\r\n", {"raw": "with a mark"}, ""),
        ("txt", "café noir".encode("latin-1"), {}, "raw caption is not UTF-8: byte 3 is 0xe9"),
        ("txt", "昆明湖边的红色宝塔".encode("gbk"), {}, "raw caption is not UTF-8"),
        ("txt", b"", {}, "raw caption is empty"),
        ("txt", b" \n\t", {}, "raw caption is empty"),
        ("txt", b"zero\0byte", {}, "raw caption holds the control character U+0000"),
        ("txt", b"bell\x07", {}, "raw caption holds the control character U+0007"),
        ("txt", b"two\nlines\tand a tab", {"raw": "two\nlines\tand a tab"}, ""),
        ("txt", b"x" * 65_537, {}, "txt caption of 65537 bytes, the limit is 65536"),
        ("json", b'{"captions": {"recaption": "long", "fused": "both"}}', {"fused": "both", "recaption": "long"}, ""),
        ("json", b'{"captions": {"recaption": 3}}', {}, "a caption in json is no text"),
        ("json", b'{"captions": ["recaption"]}', {}, "json: captions is no table of split to text"),
        ("json", b'{"captions": {"recaption": "\\ud800"}}', {}, "a caption holds half a surrogate pair"),
        ("json", b'{"captions"', {}, "json cannot be read"),
        ("json", b"[" * 100_000, {}, "json cannot be read"),
        ("json", b"\xff\xfe", {}, "json cannot be read"),
        ("json", b'{"width": 5}', {}, ""),
        ("json", b"[1, 2]", {}, ""),
    ],
)
def test_captions_are_taken_as_they_are_or_say_why_not(
    tmp_path: Path, member: str, content: bytes, captions: dict[str, str], fault: str
) -> None:
    """The same from a tar and from a folder."""
    tarred = one_tar(tmp_path / "tars", [("x.jpg", jpeg()), (f"x.{member}", content)])["a/x"]
    (tmp_path / "x.jpg").write_bytes(jpeg())
    (tmp_path / f"x.{member}").write_bytes(content)
    beside = read_all(Folder(tmp_path))["x.jpg"]
    for sample in (tarred, beside):
        assert sample.captions == captions
        assert "; ".join(sample.caption_faults).startswith(fault) and bool(sample.caption_faults) == bool(fault)
        assert not sample.fault


def test_a_users_folder_is_read_with_the_captions_beside_the_images(tmp_path: Path) -> None:
    for name in ("cat.jpg", "pets/dog.PNG", "pets/old/bird.jpg", "pets/silent.webp", "pets/dog.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    (tmp_path / "cat.txt").write_text("A cat.")
    (tmp_path / "pets/dog.txt").write_text("A dog.")
    (tmp_path / "pets/old/bird.json").write_text(json.dumps({"captions": {"recaption": "A bird on a branch."}}))
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/thumb.jpg").write_bytes(jpeg())
    reader = Folder(tmp_path)
    found = read_all(reader)
    assert {key: sample.captions for key, sample in found.items()} == {
        "cat.jpg": {"raw": "A cat."},
        "pets/dog.PNG": {"raw": "A dog."},
        "pets/dog.jpg": {"raw": "A dog."},
        "pets/old/bird.jpg": {"recaption": "A bird on a branch."},
        "pets/silent.webp": {},
    }
    assert all(reader.read(s.shard, s.member, s.offset, s.size) == jpeg() for s in found.values())


ODD: Members = [
    ("cat.jpg", b"image"),
    ("cat.TXT", b"A cat."),
    ("dog.JPG", b"image"),
    ("dog.Json", b'{"captions": {"recaption": "A dog."}}'),
    ("dog.txt", b"Dog."),
    ("cow.jpg", b"image"),
    ("cow.TXT", b"In capitals."),
    ("cow.txt", b"In small letters."),
    ("flag.svg", b"<svg/>"),
    ("flag.txt", b"A flag that nobody decodes."),
    ("map.HEIC", b"heic"),
    ("map.json", b"{}"),
    ("map.TXT", b"A map."),
    ("lost.txt", b"A caption whose picture is gone."),
    ("list.json", b"[]"),
    ("notes.md", b"nothing"),
    (".hidden.txt", b"nothing"),
]


def folder_with(path: Path, members: Members, kind: str) -> Reader:
    for name, content in members:
        path.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    if kind == "near":
        return Folder(path)
    return RemoteFolder(FsspecStore(f"file://{path}", RemoteConfig(schemes=("file",))))


@pytest.mark.parametrize("kind", ["near", "far"])
def test_captions_are_found_whatever_their_case_and_those_without_an_image_are_counted(
    tmp_path: Path, kind: str
) -> None:
    reader = folder_with(tmp_path / "in", ODD, kind)
    found = read_all(reader)
    assert {key: sample.captions for key, sample in found.items() if not sample.fault} == {
        "cat.jpg": {"raw": "A cat."},
        "dog.JPG": {"raw": "Dog.", "recaption": "A dog."},
        "cow.jpg": {"raw": "In small letters."},
    }
    faults = {key: sample.fault for key, sample in found.items() if sample.fault}
    assert list(faults) == ["flag.txt", "lost.txt", "map.TXT"]
    assert set(faults.values()) == {
        "no image of this name beside it; known are avif, bmp, gif, jpeg, jpg, png, tif, tiff, webp"
    }
    # As tasks get them.
    again = [Shard(*json.loads(json.dumps(shard))) for shard in reader.shards()]
    assert [sample.key for shard in again for sample in reader.samples(shard)] == list(found)


@pytest.mark.parametrize("kind", ["near", "far"])
def test_a_shard_is_another_one_where_a_caption_in_capitals_changed_and_only_there(tmp_path: Path, kind: str) -> None:
    plain = [(name, content) for name, content in ODD if name in ("cat.jpg", "dog.JPG", "dog.txt")]
    stamps = []
    for members in (plain, [("list.json", b"{}")], [("cat.TXT", b"A cat.")], [("cat.TXT", b"Another cat.")]):
        (shard,) = folder_with(tmp_path / "in", members, kind).shards()
        stamps.append(shard.stamp)
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3


def test_odd_files_of_a_folder_are_counted_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg())
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    faults = {key: sample.fault for key, sample in read_all(Folder(tmp_path)).items()}
    assert faults == {
        "good.jpg": "",
        "dangling.jpg": "cannot be read: No such file or directory",
        "pipe.jpg": "refused: not a plain file",
    }


def test_large_folders_are_cut_into_pieces_and_only_what_changed_changes(tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / f"{number:04d}.jpg").write_bytes(b"x")
    before = Folder(tmp_path).shards()
    assert [len(shard.members) for shard in before] == [512, 512, 176]
    (tmp_path / "0600.txt").write_text("a caption, later")
    after = Folder(tmp_path).shards()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_reading_outside_the_source_or_what_changed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(jpeg())
    write_tar(tmp_path / "in/a.tar", [("a.jpg", jpeg())])
    for shard, member in (("..", "secret.jpg"), (".", "../secret.jpg"), ("/etc", "passwd")):
        with pytest.raises(SourceError, match="not below"):
            Folder(tmp_path / "in").read(shard, member, 0, 10)
    with pytest.raises(SourceError, match="not below"):
        Tars(LocalStore(tmp_path / "in")).read("../secret.jpg", "secret.jpg", 0, 10)
    with pytest.raises(SourceError, match=r"a\.jpg: no longer the 7 bytes"):
        Folder(tmp_path / "in").read(".", "a.jpg", 0, 7)
    with pytest.raises(SourceError, match=r"a\.tar: ends before the 9 bytes of a.jpg"):
        Tars(LocalStore(tmp_path / "in")).read("a.tar", "a.jpg", 1 << 30, 9)


@pytest.mark.parametrize(
    ("kind", "made", "message"),
    [
        ("tars", "", "does not exist"),
        ("folder", "", "does not exist"),
        ("tars", "x/", "holds no .tar, nothing to read"),
        ("tars", "x/a.tar.gz", "only compressed ones like a.tar.gz: unpack them"),
        ("folder", "x/notes.txt", "holds no image"),
        ("folder", "x", "is no folder"),
    ],
)
def test_a_source_with_nothing_to_read_says_what_and_where(tmp_path: Path, kind: str, made: str, message: str) -> None:
    path = tmp_path / "x"
    if made.endswith("/"):
        path.mkdir()
    elif made:
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).write_bytes(b"")
    config = SourceConfig.model_validate({"kind": kind, "path": path})
    with pytest.raises(SourceError, match=message) as caught:
        open_source(config).shards()
    assert str(path) in str(caught.value)


def test_a_single_tar_can_be_a_source(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", jpeg())])
    write_tar(tmp_path / "b.tar", [("x.jpg", jpeg())])
    assert list(read_all(Tars(LocalStore(tmp_path / "b.tar")))) == ["b/x"]
