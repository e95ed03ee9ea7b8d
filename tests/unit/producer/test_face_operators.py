"""Faces: one real face found by a real cascade, whole on one side of the thresholds and hidden on the other."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from producer.operator.face_blur import FaceBlurConfig
from producer.operator.face_mosaic import FaceMosaicConfig
from producer.operator.faces import FacesError, find_faces
from producer.operator.judgement import OptIn, Sample, Score
from producer.operator.stage import OperatorsConfig, build_stage, describe, scoring
from tests.unit.producer.damaged import jpeg, seen

CASCADE = Path(skimage.data.lbp_frontal_face_cascade_filename())
# Where the astronaut's face is, from its hair to its chin.
TOP, LEFT, SIZE = 66, 170, 108


def astronaut(scale: float = 1.0, mirrored: bool = False, light: float = 1.0) -> np.ndarray:
    pixels = skimage.data.astronaut()[:400]
    pixels = cv2.resize(
        pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    pixels = np.clip(pixels * light, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


def hidden(pixels: np.ndarray, scale: float, mirrored: bool, kind: str, size: float) -> np.ndarray:
    """With cells of `size` pixels, or a blur of that radius, over the face; at the picture's first scale."""
    side, top, left = round(SIZE * scale), round(TOP * scale), round(LEFT * scale)
    left = pixels.shape[1] - left - side if mirrored else left
    made = pixels.copy()
    box = made[top : top + side, left : left + side]
    if kind == "blur":
        box[:] = cv2.GaussianBlur(box, (0, 0), size * scale)
        return made
    cell = max(5, round(size * scale))
    whole = side // cell * cell
    cells = cv2.resize(box[:whole, :whole], (whole // cell,) * 2, interpolation=cv2.INTER_AREA)
    box[:whole, :whole] = np.repeat(np.repeat(cells, cell, 0), cell, 1)
    return made


VIEWS = [(scale, mirrored, light) for scale in (0.8, 1.0, 1.6) for mirrored in (False, True) for light in (0.6, 1.1)]


@pytest.mark.parametrize(("config", "sizes"), [(FaceMosaicConfig, (6, 8, 10)), (FaceBlurConfig, (2.5, 3))])
def test_a_hidden_face_is_dropped_and_one_that_shows_is_kept(config: type[OptIn], sizes: tuple[float, ...]) -> None:
    operator = config.model_validate({"model": CASCADE}).operator()
    kind = operator.name.removeprefix("face_")
    good, bad = [], []
    for number, (scale, mirrored, light) in enumerate(VIEWS):
        pixels = astronaut(scale, mirrored, light)
        good.append(seen(jpeg(pixels)))
        bad.append(seen(jpeg(hidden(pixels, scale, mirrored, kind, sizes[number % len(sizes)]))))
    assert all(find_faces(good, CASCADE))
    assert [operator.judge(score).verdict for score in operator.score(good)] == [True] * len(VIEWS)
    # Of one view the cascade takes a part of the suit for a larger face.
    judged = [operator.judge(score) for score in operator.score(bad)]
    assert sum(one.verdict is False and bool(one.reason) for one in judged) >= len(VIEWS) - 1


def test_faces_are_found_once_for_both_and_none_without_a_picture() -> None:
    whole, wall = seen(jpeg(astronaut())), seen(jpeg(np.full((300, 300, 3), 90, np.uint8)))
    broken, tiny = Sample(whole.raw, None, "broken"), seen(jpeg(np.zeros((1, 3, 3), np.uint8)))
    samples = [whole, wall, broken, tiny]
    mosaics = FaceMosaicConfig(model=CASCADE).operator().score(samples)
    (found,) = whole.memo.values()
    blurs = FaceBlurConfig(model=CASCADE).operator().score(samples)
    assert list(whole.memo.values()) == [found]
    assert mosaics[1:] == [Score(0.0), Score(None), Score(0.0)]
    assert blurs[0].value is not None and blurs[1:] == [Score(None)] * 3
    face = found[0]
    assert abs(face.left * 512 - LEFT) < 30 and abs(face.bottom * 400 - TOP - SIZE) < 30


def test_without_a_detector_they_are_off_and_say_so() -> None:
    config = OperatorsConfig.model_validate({"face_blur": {}, "face_mosaic": {}})
    stage = build_stage(config)
    for name in ("face_blur", "face_mosaic"):
        assert stage.off[name].startswith(f"no face detector: set operators.{name}.model")
    on = OperatorsConfig.model_validate({"face_blur": {"model": CASCADE}})
    said = str(scoring(on, build_stage(on))) + str(describe(on, build_stage(on)))
    assert "face_blur.content" in said and str(CASCADE) not in said


def test_what_is_no_detector_ends_with_the_setting_and_the_reason(tmp_path: Path) -> None:
    for name, content, reason in (
        ("gone.xml", None, "cannot be read"),
        ("detector.pt", b"x", "neither .onnx"),
        ("bad.xml", b"<opencv_storage><cascade></cascade></opencv_storage>", "no LBP cascade"),
        ("bad.onnx", b"not a network", "no YuNet that OpenCV opens"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FacesError, match=rf"operators\.face_blur\.model: .*{name}.*{reason}"):
            FaceBlurConfig(model=path).operator()
