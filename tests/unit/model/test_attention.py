"""The attention backends are one function, and in none of them does anything reach another sample."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import attention
from model.attention import (
    Attend,
    AttentionError,
    Heads,
    attend_auto,
    attend_masked,
    attend_packed,
    attend_samples,
    attend_varlen,
    backend,
)
from model.layout import Layout
from model.mmdit import MMDiT
from model.provider import Packed, Plain
from tests.unit.model.parity import ours, reference, run_ours, samples, sizes

AXES = (8, 4, 4)
BACKENDS: dict[str, Attend] = {"samples": attend_samples, "masked": attend_masked, "packed": attend_packed}


def walked(q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, q_most: int, k_most: int) -> Tensor:
    """torch's packed kernel, in plain products: what its documentation says of starts and longest lengths."""
    for starts, rows, most in ((q_starts, q, q_most), (k_starts, k, k_most)):
        assert starts.dtype == torch.int32
        assert (starts[0], starts[-1]) == (0, len(rows))
        assert starts.diff().max() == most
        assert rows.is_contiguous()
    outputs = []
    for sample in range(len(q_starts) - 1):
        mine, theirs = slice(*q_starts[sample : sample + 2]), slice(*k_starts[sample : sample + 2])
        scores = torch.einsum("qhd,khd->hqk", q[mine], k[theirs]) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[theirs]))
    return torch.cat(outputs)


@pytest.fixture(autouse=True)
def packed_kernel_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one runs on CUDA alone (tests/gpu/test_attention_on_cuda.py); its stand-in checks what it is given."""
    monkeypatch.setattr(attention, "varlen_attn", walked)


def layout_of(seed: int) -> Layout:
    g = torch.Generator().manual_seed(seed)

    def number(high: int) -> int:
        return int(torch.randint(1, high + 1, (), generator=g))

    count = number(5)
    pictures = [[(frame, number(5), number(5)) for frame in range(number(3))] for _ in range(count)]
    return Layout.build(pictures, [number(9) for _ in range(count)], AXES)


def heads_of(layout: Layout, seed: int, *, queries: bool) -> tuple[Heads, Heads]:
    g = torch.Generator().manual_seed(seed)
    streams = []
    for lengths in (layout.text_lengths, layout.image_lengths):
        streams.append(Heads(*(torch.randn(sum(lengths), 3, 16, generator=g).requires_grad_() for _ in range(3))))
    text, image = streams
    return (text if queries else text._replace(q=None)), image


def outcome(attend: Attend, layout: Layout, seed: int, *, queries: bool) -> list[Tensor]:
    """Both outputs, and the gradients of all heads under a seeded push."""
    text, image = heads_of(layout, seed, queries=queries)
    outputs = attend(text, image, layout)
    g = torch.Generator().manual_seed(seed + 1)
    sum((out * torch.randn(out.shape, generator=g)).sum() for out in outputs).backward()
    return [*outputs, *(part.grad for part in (*text, *image) if part is not None)]


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["masked", "packed"])
def test_every_backend_is_attention_a_sample_at_a_time_gradients_too(name: str, seed: int, queries: bool) -> None:
    layout = layout_of(seed)
    wanted = outcome(attend_samples, layout, seed, queries=queries)
    found = outcome(BACKENDS[name], layout, seed, queries=queries)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        assert torch.allclose(got, want, atol=2e-6)


def test_a_sample_at_a_time_is_plain_attention_over_its_text_and_image() -> None:
    layout = Layout.build([[(0, 2, 2)], [(0, 1, 3)]], [3, 2], AXES)
    text, image = heads_of(layout, 0, queries=True)
    text_out, image_out = attend_samples(text, image, layout)
    q, k, v = (torch.cat([t[3:5], i[4:7]]).transpose(0, 1) for t, i in zip(text, image, strict=True))
    want = F.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v
    got = torch.cat([text_out[3:5], image_out[4:7]]).unflatten(-1, (3, 16)).transpose(0, 1)
    assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize(
    ("name", "poison"),
    [("samples", torch.nan), ("packed", torch.nan), ("samples", 1e4), ("packed", 1e4), ("masked", 1e4)],
)
def test_a_poisoned_neighbour_changes_no_one_else(name: str, poison: float, queries: bool) -> None:
    layout = Layout.build([[(0, 2, 3)], [(0, 3, 1), (1, 2, 2)], [(0, 1, 4)]], [4, 2, 5], AXES)
    text, image = heads_of(layout, 1, queries=queries)
    with torch.no_grad():
        clean = BACKENDS[name](text, image, layout)
        for stream, owner in ((text, layout.text_owner), (image, layout.image_owner)):
            for part in stream:
                if part is not None:
                    part[owner == 1] = poison
        dirty = BACKENDS[name](text, image, layout)
    for before, after, owner in zip(clean, dirty, (layout.text_owner, layout.image_owner), strict=True):
        others = owner[: len(before)] != 1
        assert torch.allclose(before[others], after[others], atol=1e-6)
        assert not torch.allclose(before[~others], after[~others]) or not len(before)


@pytest.mark.parametrize("name", ["samples", "masked", "auto"])
def test_the_setting_chooses_the_attention_of_the_model(name: str) -> None:
    config = sizes(attention=name)
    theirs = reference(config, 2)
    unit = samples(config, 2, 4, (1, 2, 3))
    model = ours(config, theirs)
    assert all(block.attn.attend is backend(name) for block in model.blocks)
    with torch.no_grad():
        found, wanted = run_ours(model, unit), run_ours(ours(sizes(), theirs), unit)
    assert torch.allclose(found, wanted, atol=1e-5)


class Packing(Plain):
    """A provider with attention of its own, which notes what it was asked for."""

    def packed_attention(self, heads: int, head_dim: int) -> Packed | None:
        self.asked = heads, head_dim
        return walked


@pytest.mark.parametrize("name", ["auto", "samples"])
def test_auto_takes_the_providers_attention_and_a_name_what_it_names(name: str) -> None:
    config = sizes(attention=name)
    provider = Packing()
    model = MMDiT(config, provider)
    assert provider.asked == (config.num_attention_heads, config.attention_head_dim)
    taken = [isinstance(block.attn.attend, partial) for block in model.blocks]
    assert taken == [name == "auto"] * config.num_layers
    plain = MMDiT(config)
    plain.load_state_dict(model.state_dict())
    unit = samples(config, 2, 4, (1, 2, 3))
    with torch.no_grad():
        assert torch.allclose(run_ours(model, unit), run_ours(plain, unit), atol=1e-5)


def test_varlen_says_why_it_does_not_run_and_auto_then_takes_samples() -> None:
    layout = layout_of(3)
    text, image = heads_of(layout, 3, queries=True)
    with pytest.raises(AttentionError, match=r"model\.attention: varlen runs on CUDA, .* are on cpu; use auto"):
        attend_varlen(text, image, layout)
    for got, want in zip(attend_auto(text, image, layout), attend_samples(text, image, layout), strict=True):
        assert torch.equal(got, want)


def test_a_model_asked_for_varlen_on_the_cpu_says_so() -> None:
    config = sizes(attention="varlen")
    with pytest.raises(AttentionError, match="varlen"):
        run_ours(MMDiT(config), samples(config, 0, 2))


def test_an_unknown_attention_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="attention"):
        sizes(attention="flash")
