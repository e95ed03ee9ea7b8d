"""A unit's layout: positions as the reference numbers them, and every way that lengths can fail to add up."""

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedLayer3DRope, QwenEmbedRope
from torch import Tensor

from model.layout import MAX_TEXT, Layout, LayoutError
from model.mmdit import MMDiT
from model.rope import Grid, angles, numbered, text_positions
from tests.unit.model.parity import sizes

AXES = (8, 4, 4)


def turns(layout: Layout) -> tuple[Tensor, Tensor]:
    return torch.complex(layout.image_cos, layout.image_sin), torch.complex(layout.text_cos, layout.text_sin)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize(
    "pictures", [[(1, 1)], [(83, 83)], [(4, 6), (7, 2)], [(5, 5), (1, 9), (12, 3), (2, 2)], [(2, 2)] * 7, [(104, 58)]]
)
def test_every_angle_is_the_references(pictures: list[tuple[int, int]], layered: bool) -> None:
    kind = QwenEmbedLayer3DRope if layered else QwenEmbedRope
    shapes = [(1, height, width) for height, width in pictures]
    image, text = kind(10000, list(AXES), scale_rope=True)([shapes], max_txt_seq_len=37, device=torch.device("cpu"))
    mine = turns(Layout.build([numbered(pictures, layered=layered)], [37], AXES, layered=layered))
    assert (mine[0] - image).abs().max() <= 1e-5
    assert (mine[1] - text).abs().max() <= 1e-5


def test_an_odd_side_leans_to_the_negative_and_text_follows_the_largest_half_side() -> None:
    layout = Layout.build([[(0, 3, 3)]], [2], AXES)
    positions = torch.tensor([[0, -2, -2], [0, -2, -1], [0, -2, 0]])
    assert torch.equal(layout.image_cos[:3], angles(positions, AXES).cos())
    assert torch.equal(layout.text_cos, angles(torch.tensor([[1, 1, 1], [2, 2, 2]]), AXES).cos())


def test_many_small_layers_push_the_text_on_and_many_small_references_do_not() -> None:
    grids = numbered([(2, 2)] * 6, layered=True)
    assert text_positions(grids, 1, layered=True).tolist() == [[5, 5, 5]]
    assert text_positions(numbered([(2, 2)] * 6), 1).tolist() == [[1, 1, 1]]


def test_positions_beyond_the_table_of_the_reference_are_computed() -> None:
    layout = Layout.build([[(0, 8192, 1)]], [MAX_TEXT], AXES)
    wanted = angles(torch.arange(4096, 4096 + MAX_TEXT)[:, None].expand(-1, 3), AXES)
    assert torch.equal(layout.text_cos, wanted.cos())
    _, theirs = QwenEmbedRope(10000, list(AXES), scale_rope=True)([[(1, 8192, 1)]], max_txt_seq_len=MAX_TEXT)
    assert len(theirs) == 0  # where the reference would fail


def test_lengths_owners_and_levels_of_a_mixed_unit() -> None:
    layout = Layout.build([[(0, 1, 2), (1, 1, 3)], [(0, 2, 2)]], [2, 1], AXES)
    assert (layout.image_lengths, layout.text_lengths, layout.target_lengths) == ((5, 4), (2, 1), (2, 4))
    assert layout.image_owner.tolist() == [0] * 5 + [1] * 4
    assert layout.image_level.tolist() == [0, 0, 2, 2, 2, 1, 1, 1, 1]
    assert layout.text_owner.tolist() == [0, 0, 1]
    assert layout.target_rows is not None
    assert layout.target_rows.tolist() == [0, 1, 5, 6, 7, 8]
    assert layout.image_starts.tolist() == [0, 5, 9]
    assert layout.joint_starts.tolist() == [0, 7, 12]


def test_layers_are_the_target_and_the_condition_is_not() -> None:
    layout = Layout.build([numbered([(1, 2), (1, 2), (2, 3)], layered=True)], [1], AXES, layered=True)
    assert layout.target_lengths == (4,)
    assert layout.target_rows is not None
    assert layout.target_rows.tolist() == [0, 1, 2, 3]


def test_a_moved_layout_is_the_same() -> None:
    layout = Layout.build([[(0, 1, 2), (1, 1, 3)]], [2], AXES, keys=["a"])
    moved = layout.to(torch.device("meta"))
    tensors = {name for name, value in vars(layout).items() if isinstance(value, Tensor)}
    assert all(vars(moved)[name].device.type == "meta" for name in tensors)
    assert all(vars(moved)[name] == value for name, value in vars(layout).items() if name not in tensors)


@pytest.mark.parametrize(
    ("pictures", "text", "layered", "keys", "message"),
    [
        ([], [], False, [], "0 samples"),
        ([[(0, 1, 1)]], [1, 1], False, [], "1 samples with pictures, 2 with text"),
        ([[(0, 1, 1)], []], [1, 1], False, [], r"sample 1: pictures \[\]"),
        ([[(0, 1, 1), (1, 0, 4)]], [1], False, [], r"sample 0: .*\(1, 0, 4\)"),
        ([[(0, 1, 1)]], [0], False, ["cat/7"], "sample 'cat/7': .* 0 text tokens"),
        ([[(0, 1, 1)]], [MAX_TEXT + 1], False, ["cat/7"], "sample 'cat/7': a prompt of 1025 tokens; at most 1024"),
        ([[(0, 1, 1), (0, 1, 1)]], [1], False, [], r"frames \[0, 0\]; .* have \[0, 1\]"),
        ([[(0, 1, 1), (1, 1, 1)]], [1], True, [], r"frames \[0, 1\]; layers and .* have \[0, -1\]"),
        ([[(0, 1, 1), (-1, 1, 1)]], [1], False, [], r"frames \[0, -1\]; the target .* have \[0, 1\]"),
        ([[(0, 1, 1)]], [1], False, ["a", "b"], "2 keys for 1 samples"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_its_numbers(
    pictures: list[list[Grid]], text: list[int], layered: bool, keys: list[str], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.build(pictures, text, AXES, layered=layered, keys=keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(8, 16)}, r"image tokens have shape \(8, 16\), .* 2 samples have \[5, 4\], together 9"),
        ({"image": torch.zeros(1, 9, 16)}, r"image tokens have shape \(1, 9, 16\)"),
        ({"text": torch.zeros(4, 24)}, r"text tokens have shape \(4, 24\), .* have \[2, 1\], together 3"),
        ({"sigma": torch.zeros(1)}, r"sigma has shape \(1,\), the layout 2 samples"),
        ({"sigma": torch.zeros(2, 1)}, r"sigma has shape \(2, 1\)"),
        ({"image": torch.zeros(9, 64)}, "image rows are 64 wide, the model's are 16"),
        ({"text": torch.zeros(3, 25)}, "text rows are 25 wide, the model's are 24"),
        ({"axes": (8, 4, 8)}, "angle rows are 10 wide, the model's are 8"),
        ({"layered": True}, "layered True, .* use_layer3d_rope False"),
    ],
)
def test_tensors_that_do_not_fit_the_layout_are_refused_before_any_layer_runs(
    change: dict[str, object], message: str
) -> None:
    model = MMDiT(sizes())
    model.img_in.register_forward_hook(lambda *_: pytest.fail("a layer ran"))
    layered, axes = bool(change.get("layered")), change.get("axes", AXES)
    grids = [numbered([(1, 2), (1, 3)], layered=layered), numbered([(2, 2)], layered=layered)]
    tensors = {"image": torch.zeros(9, 16), "text": torch.zeros(3, 24), "sigma": torch.zeros(2)}
    tensors |= {name: value for name, value in change.items() if name in tensors}
    with pytest.raises(LayoutError, match=message):
        model(**tensors, layout=Layout.build(grids, [2, 1], axes, layered=layered))


@pytest.mark.parametrize("stream", ["image", "text"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_are_not_finite_are_named_with_their_sample(stream: str, value: float, dtype: torch.dtype) -> None:
    layout = Layout.build([[(0, 1, 2), (1, 1, 3)], [(0, 2, 2)]], [2, 3], AXES, keys=["dog/1", "cat/7"])
    rows = {"image": torch.zeros(9, 16, dtype=dtype), "text": torch.zeros(5, 24, dtype=dtype)}
    layout.check_finite(**rows)
    rows[stream][-2:, 5] = value
    of = {"image": "2 of its 4 image", "text": "2 of its 3 text"}[stream]
    with pytest.raises(LayoutError, match=f"sample 'cat/7': {of} tokens hold NaN or infinity"):
        layout.check_finite(**rows)
