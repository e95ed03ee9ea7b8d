"""What Transformer Engine's attention is given, shown by a stand-in: the real one runs on CUDA alone."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from model.attention import attend_packed, attend_samples
from parallel import te_provider
from parallel.te_provider import TransformerEngineProvider
from tests.distributed import tiny
from tests.unit.model.test_attention import layout_of, outcome

# As in Transformer Engine: read where the module is made.
NONDETERMINISTIC = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"


class DotProductAttention(nn.Module):
    """Transformer Engine's names, order and defaults (dot_product_attention.py), and its checks of packed rows."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int,
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
    ) -> None:
        super().__init__()
        assert (qkv_format, attn_mask_type, attention_dropout) == ("thd", "padding", 0.0)
        self.heads, self.head_dim = num_gqa_groups or num_attention_heads, kv_channels
        self.deterministic = os.environ.get(NONDETERMINISTIC, "1") == "0"

    def forward(
        self,
        query_layer: Tensor,
        key_layer: Tensor,
        value_layer: Tensor,
        attention_mask: Tensor | None = None,
        qkv_format: str | None = None,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None,
        cu_seqlens_q_padded: Tensor | None = None,
        cu_seqlens_kv_padded: Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
    ) -> Tensor:
        """Each sample's attention from its starts alone, [t, h * k]."""
        assert attention_mask is qkv_format is cu_seqlens_q_padded is cu_seqlens_kv_padded is None
        assert cu_seqlens_q is not None
        assert cu_seqlens_kv is not None
        assert cu_seqlens_q.shape == cu_seqlens_kv.shape
        for rows, starts, most in (
            (query_layer, cu_seqlens_q, max_seqlen_q),
            (key_layer, cu_seqlens_kv, max_seqlen_kv),
            (value_layer, cu_seqlens_kv, max_seqlen_kv),
        ):
            assert rows.is_contiguous()
            assert rows.shape == (int(starts[-1]), self.heads, self.head_dim)
            assert (starts.dtype, int(starts[0]), int(starts.diff().max())) == (torch.int32, 0, most)
        outputs = []
        for sample in range(len(cu_seqlens_q) - 1):
            mine, theirs = slice(*cu_seqlens_q[sample : sample + 2]), slice(*cu_seqlens_kv[sample : sample + 2])
            scores = torch.einsum("qhd,khd->hqk", query_layer[mine], key_layer[theirs]) / math.sqrt(self.head_dim)
            outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value_layer[theirs]).flatten(1))
        return torch.cat(outputs)


Make = Callable[[torch.dtype], TransformerEngineProvider]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[DotProductAttention]:
    """Transformer Engine with the stand-in, and each one of it that was made."""
    every: list[DotProductAttention] = []

    def make(*args: int, **kwargs: object) -> DotProductAttention:
        every.append(DotProductAttention(*args, **kwargs))  # type: ignore[arg-type]
        return every[-1]

    monkeypatch.setattr(te_provider, "te", SimpleNamespace(DotProductAttention=make))
    # Set and removed, so that what the provider leaves here goes with the test.
    monkeypatch.setenv(NONDETERMINISTIC, "")
    monkeypatch.delenv(NONDETERMINISTIC)
    return every


@pytest.fixture
def provider(made: list[DotProductAttention]) -> Iterator[Make]:
    """A provider that is told that it is one of two tensor-parallel ranks."""
    here = tiny.mesh(1, False)
    try:
        yield lambda dtype: TransformerEngineProvider(replace(here, tp=2), dtype, "none")
    finally:
        here.close()


@pytest.mark.parametrize("queries", [True, False])
def test_its_attention_of_a_ranks_heads_is_attention_a_sample_at_a_time_gradients_too(
    provider: Make, queries: bool
) -> None:
    # These heads are three: half of a model's six. They are float32, so that the comparison is tight.
    packed = provider(torch.bfloat16).packed_attention(6, 16)
    assert packed is not None
    for seed in range(20):
        layout = layout_of(seed)
        wanted = outcome(attend_samples, layout, seed, queries=queries)
        found = outcome(partial(attend_packed, kernel=packed), layout, seed, queries=queries)
        for got, want in zip(found, wanted, strict=True):
            assert got.shape == want.shape
            assert torch.allclose(got, want, atol=2e-6)


def test_its_attention_is_deterministic_unless_the_environment_says_otherwise(
    provider: Make, made: list[DotProductAttention], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider(torch.bfloat16).packed_attention(6, 16)
    monkeypatch.setenv(NONDETERMINISTIC, "1")
    provider(torch.bfloat16).packed_attention(6, 16)
    assert [attention.deterministic for attention in made] == [True, False]


def test_float32_is_left_to_the_models_own_attention(provider: Make, made: list[DotProductAttention]) -> None:
    assert provider(torch.float32).packed_attention(6, 16) is None
    assert not made
