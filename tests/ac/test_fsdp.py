"""The order AC → FSDP2: a plan first, then fully_shard per layer, in a process group of one."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from actune.ac import apply_plan
from actune.plan import Treatment
from tests.ac.models import SAVE_MEAN, stack, tokens, uniform


@pytest.fixture
def mesh(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "treatment", [Treatment("full"), Treatment("selective"), SAVE_MEAN], ids=["full", "sac", "name"]
)
def test_gradients_are_those_of_the_plain_model(mesh, treatment):
    plain, sharded = stack(), stack()
    apply_plan(sharded, uniform(treatment))
    for layer in sharded.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert list(sharded.state_dict()) == list(plain.state_dict())
    for model in (plain, sharded):
        model(tokens()).square().mean().backward()
    found = {name: parameter.grad.full_tensor() for name, parameter in sharded.named_parameters()}
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
