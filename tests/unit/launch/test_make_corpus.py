"""The smoke corpus: real pictures, true sizes, the same bytes every time, and no copies but the planted ones."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from launch.lettering import SIGNS, draw
from launch.make_corpus import CorpusError, _package, make_corpus
from launch.photographs import PHOTOGRAPHS
from producer.api.bucket import ASPECTS, bucket, nearest
from producer.neighbours import Hashes
from producer.operator.near_duplicate import NearDuplicateConfig, hash_pixels
from producer.picture import decode
from producer.source.shard import RawSample
from producer.source.store import LocalStore
from producer.source.tars import Tars
from tests.unit.producer.all_pairs import apart, closest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    made = make_corpus(folder)
    assert made["good"] >= 150 and made["bad"] >= 9
    return folder


@pytest.fixture(scope="module")
def good(corpus: Path) -> dict[str, tuple[RawSample, Image.Image]]:
    """The samples that are not planted, decoded."""
    reader = Tars(LocalStore(corpus))
    planted = {item["key"] for item in json.loads((corpus / "planted.json").read_text())}
    found = [sample for shard in reader.shards() for sample in reader.samples(shard) if sample.key not in planted]
    return {
        sample.key: (sample, decode(reader.read(sample.shard, sample.member, sample.offset, sample.size)))
        for sample in found
    }


def test_it_is_the_same_to_the_byte_and_written_only_where_it_changed(corpus: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path)
    names = sorted(path.relative_to(corpus).as_posix() for path in corpus.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert all((corpus / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    (tmp_path / "planted.json").write_text("[]")
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    make_corpus(tmp_path)
    assert {name for name in names if (tmp_path / name).stat().st_mtime_ns != before[name]} == {"planted.json"}


def test_good_samples_fill_at_least_five_buckets_at_256p(good: dict[str, tuple[RawSample, Image.Image]]) -> None:
    buckets = tuple(bucket(256, aspect) for aspect in ASPECTS)
    filled = set()
    for key, (_, image) in good.items():
        place = nearest(image.height, image.width, buckets)
        filled.add(place)
        assert image.width >= 0.9 * place.width and image.height >= 0.9 * place.height, key
    assert len(filled) >= 5


def test_good_samples_are_no_near_duplicates_by_the_operators_own_measure(
    good: dict[str, tuple[RawSample, Image.Image]],
) -> None:
    hashes = np.asarray([hash_pixels(np.asarray(image)) for _, image in good.values()], np.uint64)
    nearest_key = min(zip(closest(apart(Hashes(*hashes.T))), good, strict=True))
    assert nearest_key[0] > NearDuplicateConfig().radius, nearest_key


def test_captions_are_there_distinct_and_in_two_splits_and_two_languages(
    good: dict[str, tuple[RawSample, Image.Image]],
) -> None:
    raw = [sample.captions["raw"] for sample, _ in good.values()]
    assert len(set(raw)) == len(raw)
    long = [sample.captions["recaption"] for sample, _ in good.values() if "recaption" in sample.captions]
    assert len(long) >= 100
    assert sum(not caption.isascii() for caption in raw) >= 15
    assert not any(sample.caption_faults for sample, _ in good.values())


def test_crops_lie_inside_their_photographs() -> None:
    for photograph in PHOTOGRAPHS:
        with Image.open(_package(photograph.package) / photograph.file) as image:
            for crop in photograph.crops:
                assert crop.left + crop.width <= image.width and crop.top + crop.height <= image.height, crop


def test_every_character_of_a_sign_is_drawn_and_quoted_and_lies_inside_the_picture() -> None:
    font = _package("mplfonts") / "fonts/NotoSansCJKsc-Regular.otf"
    face = ImageFont.truetype(font, 40)
    missing = bytes(face.getmask("\U000f0000"))
    for sign in SIGNS:
        text = "".join(sign.lines)
        assert all(line in sign.recaption for line in sign.lines)
        assert text in sign.caption or " ".join(sign.lines) in sign.caption
        assert all(bytes(face.getmask(char)) != missing for char in text if char != " "), text
        pixels = np.asarray(draw(sign, font)).astype(int)
        ground = pixels[0, 0]
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == ground).all(), text
        assert (np.abs(pixels - ground).sum(-1) > 120).mean() > 0.01, text


def test_planted_samples_are_spread_among_good_ones(corpus: Path) -> None:
    planted = json.loads((corpus / "planted.json").read_text())
    shards = {item["key"].partition("/")[0] for item in planted}
    assert len(shards) >= 2
    for shard in shards:
        with tarfile.open(corpus / f"{shard}.tar") as tar:
            stems = list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames()))
        bad = [stems.index(item["key"].partition("/")[2]) for item in planted if item["key"].startswith(shard)]
        assert max(bad) < len(stems) - 1


def test_a_missing_package_is_named_with_the_fix() -> None:
    with pytest.raises(CorpusError, match=r"no_such_package is not installed; pip install -e '\.\[smoke\]'"):
        _package("no_such_package/data")
