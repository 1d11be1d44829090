"""One of two processes that train a torchtitan target together: what its `parallelize` makes, and its gradients."""

import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from actune.ac import apply_plan
from actune.measure import open_device
from actune.measure.materialize import materialize
from actune.plan import Plan, Rule, Treatment
from actune.targets import load_target

TARGET = "torchtitan:deepseek_v3/debugmodel?layers=2&seq=16&batch=1"


def gradients(target, model):
    target.loss(model, target.batch(0)).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def main(rank, store_path):
    warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype")
    torch.set_num_threads(1)
    target = load_target(TARGET)
    assert not target.has_parallelize, "alone, it is a target of one process"
    dist.init_process_group("gloo", store=dist.FileStore(store_path, 2), rank=rank, world_size=2)
    assert target.has_parallelize
    assert target.batch(0)["valid_tokens"].item() == 2 * 16

    def build():
        torch.manual_seed(0)
        return materialize(target.model(), torch.device("cpu"), target=TARGET)

    expected = {name: 2 * grad for name, grad in gradients(target, build()).items()}  # of both ranks, on the same batch
    sharded = target.parallelize(build())
    assert all(isinstance(layer, FSDPModule) for layer in sharded.layers.values())
    whole = {name: parameter.numel() for name, parameter in sharded.named_parameters()}
    assert all(p.to_local().numel() == whole[name] // 2 for name, p in sharded.named_parameters())

    # Matmuls are of bfloat16 there, and few of its 8 bits are left in a gradient; a wrong factor would be off by half.
    found = gradients(target, sharded)
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        error = (grad - expected[name]).norm() / expected[name].norm()
        assert error < 0.2, f"{name}: {error}"

    # As a worker does it, and torchtitan's trainer: what is sharded has no storage yet.
    device = open_device("cpu")
    filled = device.distribute(target, device.build(target))
    assert all(p.to_local().numel() == whole[name] // 2 for name, p in filled.named_parameters())
    assert all(grad.isfinite().all() for grad in gradients(target, filled).values())

    # AC inside of what is sharded, as torchtitan's own order has it.
    planned = build()
    apply_plan(planned, Plan((Rule(("layers.0",), Treatment("full")), Rule(("layers.1",), Treatment("selective")))))
    again = gradients(target, target.parallelize(planned))
    assert all(torch.equal(again[name], grad) for name, grad in found.items())
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
