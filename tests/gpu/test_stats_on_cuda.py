"""A step's numbers and phases are gathered on CUDA without the host ever waiting for the device."""

from collections.abc import Iterator

import pytest
import torch

from consumer.phases import Phases
from consumer.stats import Stats, peak_memory
from parallel.mesh import Mesh
from tests.distributed import tiny
from tests.unit.consumer.test_stats import SIZES, model, objective, unit

pytestmark = pytest.mark.gpu


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    here = tiny.mesh(1, False)
    yield here
    torch.cuda.set_sync_debug_mode("default")
    here.close()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_step_s_numbers_wait_for_nothing_and_equal_the_cpu_s(mesh: Mesh) -> None:
    flow, stats, cpu = objective(), Stats(mesh, SIZES), torch.device("cpu")
    units = [unit(k, 1 + k % 4) for k in range(9)]
    batches = [flow.batch(samples, 0, mesh.device, torch.float32) for samples in units]
    losses = [flow.loss(model, batch)[1] for batch in batches]
    stats.reduced()  # the first call compiles kernels and makes the communicator
    torch.cuda.synchronize()
    phases = Phases(mesh.device)
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchroniz"):
        losses[0].sum().item()
    stats.start()
    phases.enter("forward")
    for batch, each in zip(batches, losses, strict=True):
        stats.add(batch, each, 10.0)
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second at least
    phases.enter("communication")
    vector = stats.reduced()
    phases.end()
    memory = peak_memory(mesh.device)
    torch.cuda.set_sync_debug_mode("default")
    totals = stats.read(vector.tolist())
    wanted = [flow.loss(model, flow.batch(samples, 0, cpu, torch.float32))[1] for samples in units]
    assert totals.loss == pytest.approx(sum(each.double().sum().item() for each in wanted), rel=1e-6)
    assert totals.samples == sum(part.samples for part in totals.loss_by_level.values())
    assert totals.samples == sum(part.samples for part in totals.loss_by_bucket.values())
    assert 0 < memory < torch.cuda.get_device_properties(mesh.device).total_memory
    seconds = phases.seconds()
    assert 0.05 < seconds["forward"] < 2 and 0 < seconds["communication"] < 0.05
