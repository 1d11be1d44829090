"""Two ranks of FSDP2: a plan attached to a sharded model is what users get who apply the plan before they shard."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from actune.ac import apply_plan, remove_plan
from actune.errors import PlanError
from actune.plan import Treatment
from tests.ac.models import stack, tokens, uniform
from tests.ac.sharded_ranks import COMPILED, EAGER


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ac.sharded_ranks", str(folder)],
            env={**os.environ, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], ended
    return [json.loads(out) for out, _ in ended]


@pytest.mark.parametrize("name", [*EAGER, *COMPILED])
def test_it_is_what_the_order_of_users_gives(of_ranks, name):
    for found in of_ranks:
        assert found[name]["same_keys"]
        assert found[name]["bitwise"]
        assert found[name]["peak_bytes"] == found[name]["expected_peak_bytes"]
    assert of_ranks[0]["full"]["peak_bytes"] < of_ranks[0]["split"]["peak_bytes"] < of_ranks[0]["none"]["peak_bytes"]


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def sharded(mesh):
    model = stack()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("grouped", [False, True])
def test_hooks_go_to_the_shell_and_come_back(mesh, grouped):
    model = stack()
    fully_shard(list(model.layers) if grouped else model.layers[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    layer = model.layers[0]
    own = layer.register_forward_hook(lambda *_: None)
    before = dict(layer._forward_pre_hooks), dict(layer._forward_hooks)
    apply_plan(model, uniform(Treatment("full")))
    assert model.layers[0] is not layer
    assert not layer._forward_pre_hooks
    assert list(layer._forward_hooks) == [own.id]
    model(tokens()).sum().backward()
    remove_plan(model)
    assert model.layers[0] is layer
    assert (dict(layer._forward_pre_hooks), dict(layer._forward_hooks)) == before
    model(tokens()).sum().backward()


def test_whole_model_of_sharded_layers_is_not_compiled(sharded):
    with pytest.raises(PlanError, match="hooks would cut the graph"):
        apply_plan(sharded, uniform(Treatment("full"), compile="model"))


def test_layer_with_something_sharded_inside_is_not_compiled(mesh):
    model = stack()
    fully_shard(model.layers[1].feed_forward, mesh=mesh)
    with pytest.raises(PlanError, match=r"layers\.1 has modules inside .*\(feed_forward\)"):
        apply_plan(model, uniform(Treatment("full"), compile="layer"))
    apply_plan(model, uniform(Treatment("full")))
    loss = model(tokens()).square().mean()
    loss.backward()
    plain = stack()
    assert torch.equal(loss, plain(tokens()).square().mean())
