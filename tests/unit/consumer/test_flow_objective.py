"""The flow objective: every sample counts alike, and bad units are named."""

import numpy as np
import pytest
import torch
from torch import Tensor

from consumer.objective.flow import BatchError, FlowObjective
from model.config import FlowConfig
from model.layout import Layout, LayoutError
from producer.api.unit import Encoded, Latent

CPU = torch.device("cpu")


def sample(key: str, height: int = 32, width: int = 48, tokens: int = 3, channels: int = 4, text: int = 8) -> Encoded:
    rng = np.random.default_rng(len(key))
    planes = rng.normal(size=(2, channels, height // 8, width // 8)).astype("float16")
    bits = torch.randn(tokens, text).bfloat16().view(torch.int16).numpy().view("uint16")
    return Encoded(key, "s", "shard", "t2i", "raw", "caption", Latent(height, width, planes[0], planes[1] - 9), bits)


def objective(**flow: object) -> FlowObjective:
    zeros, ones = torch.zeros(4), torch.ones(4)
    return FlowObjective(FlowConfig(**flow), seed=1, mean=zeros, std=ones, empty=torch.zeros(2, 8), axes=(8, 4, 4))


def nothing(image: Tensor, text: Tensor, sigma: Tensor, layout: Layout) -> Tensor:
    return image * 0


def test_the_loss_is_a_sum_of_sample_means_whatever_shares_the_unit() -> None:
    flow, units = objective(), [sample("a"), sample("bb", 64, 32, 5)]
    together = flow.loss(nothing, flow.batch(units, 3, CPU, torch.float32))[0]
    alone = [flow.loss(nothing, flow.batch([one], 3, CPU, torch.float32))[0] for one in units]
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone), rel=1e-6)


def test_the_point_less_sigma_velocity_is_the_normalised_latent() -> None:
    flow = objective(posterior="mean")
    flow.mean, flow.std = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 2.0, 2.0])
    one = sample("a")
    batch = flow.batch([one], 0, CPU, torch.float32)
    tokens = batch.image - batch.sigma * batch.target
    wanted = (torch.from_numpy(one.latent.mean.astype("float32")) - flow.mean[:, None, None]) / 2
    assert tokens.sum().item() == pytest.approx(wanted.sum().item(), abs=1e-3)
    assert tokens.abs().max().item() == pytest.approx(wanted.abs().max().item(), abs=1e-5)


def test_a_dropped_prompt_is_the_encoding_of_the_empty_one_but_never_in_validation() -> None:
    flow = objective(prompt_dropout=0.999)
    units = [sample(k * "x") for k in range(1, 9)]
    assert set(flow.batch(units, 0, CPU, torch.float32).layout.text_lengths) == {2}
    assert set(flow.batch(units, "validation", CPU, torch.float32).layout.text_lengths) == {3}


def test_references_are_clean_tokens_after_their_target_and_carry_no_loss() -> None:
    flow, edit = objective(posterior="mean"), sample("edit")
    references = (sample("r", 16, 32).latent, sample("rr", 48, 16).latent)
    edit = Encoded(**{**vars(edit), "references": references})
    batch = flow.batch([sample("a"), edit], 0, CPU, torch.float32)
    assert batch.layout.image_lengths == (6, 6 + 2 + 3) and batch.layout.target_lengths == (6, 6)
    assert batch.target.shape[0] == 12 and batch.layout.target_rows is not None
    first = batch.image[12:14].sum().item()
    assert first == pytest.approx(references[0].mean.astype("float32").sum(), abs=1e-3)


def test_an_empty_unit_still_has_a_backward_and_counts_for_nothing() -> None:
    flow = objective()
    batch = flow.batch([], 0, CPU, torch.float32)
    weight = torch.ones(16, requires_grad=True)
    loss, each = flow.loss(lambda image, *_: image * weight, batch)
    loss.backward()
    assert loss.item() == 0 and len(each) == 0 and weight.grad is not None and not weight.grad.any()


def test_a_latent_of_an_unknown_bucket_is_named_with_those_that_are_known() -> None:
    flow = objective()
    flow.buckets = frozenset({(32, 32), (16, 64)})
    with pytest.raises(BatchError, match=r"'odd': a latent of 32x48 is in none .* 16x64, 32x32"):
        flow.batch([sample("odd")], 0, CPU, torch.float32)
    assert flow.batch([], 0, CPU, torch.float32).tokens == 0


def test_wrong_widths_and_bad_values_name_the_sample() -> None:
    flow = objective()
    with pytest.raises(BatchError, match=r"'wide'.*prompt width 9.*8"):
        flow.batch([sample("wide", text=9)], 0, CPU, torch.float32)
    bad = sample("nan")
    with pytest.raises(LayoutError, match=r"nan.*3 of its 3 text tokens hold NaN"):
        flow.batch([Encoded(**{**vars(bad), "text": np.full((3, 8), 0x7FC0, "uint16")})], 0, CPU, torch.float32)
