"""One of two ranks: plans attached to a sharded model against the order that users run (a fresh model, the plan, then
`fully_shard`). `python -m tests.ac.sharded_ranks FOLDER` with RANK set; prints what it found as JSON."""

import json
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from actune.ac.apply import Application, apply_plan
from actune.measure.device import CpuDevice
from actune.measure.gloo import settled_collectives
from actune.plan import Plan, Rule, Treatment
from tests.ac.models import SAVE_MEAN, stack

FULL, SAC = Treatment("full"), Treatment("selective")
SPLIT = Treatment("full", wrap=("attention", "feed_forward"))
EAGER = {
    "none": Plan(),
    "full": Plan((Rule(("*",), FULL),)),
    "sac": Plan((Rule(("*",), SAC),)),
    "named": Plan((Rule(("*",), SAVE_MEAN),)),
    "split": Plan((Rule(("*",), SPLIT),)),
    "mixed": Plan((Rule(("layers.0",), FULL), Rule(("layers.1",), SPLIT))),
}
COMPILED = {
    "compiled": Plan((Rule(("layers.1",), SAC),), "layer"),
}
WIDTH = 64


def batch():
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    return torch.randn(4, 32, WIDTH, generator=generator)


def shard(model, mesh):
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def step(model):
    """Loss, local gradients, and the bytes that a step reaches above its start."""
    device = CpuDevice()
    x = batch()
    model.zero_grad(set_to_none=True)
    with device.peak_probe() as probe:
        loss = model(x).square().mean()
        loss.backward()
    found = {"loss": loss.detach()} | {name: p.grad.to_local().clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found, probe.peak_bytes - probe._live_bytes


def settled_step(model):
    """The same, of the least of a few steps: gloo's threads may free a buffer too late for a count, never too early."""
    with settled_collectives():
        steps = [step(model) for _ in range(3)]
    return steps[0][0], min(peak_bytes for _, peak_bytes in steps)


def compared(plans, mesh):
    sharded = shard(stack(2, width=WIDTH), mesh)
    applications = {name: Application(sharded, plan) for name, plan in plans.items()}
    keys = list(sharded.state_dict())
    step(sharded)  # FSDP sets itself up in the first one
    found = {}
    for name, plan in plans.items():
        applications[name].attach()
        same_keys = list(sharded.state_dict()) == keys
        if plan.compile != "off":
            step(sharded)  # the compiler works in the first one
        switched, switched_bytes = settled_step(sharded)
        applications[name].detach()
        fresh = shard(apply_plan(stack(2, width=WIDTH), plan), mesh)
        step(fresh)
        expected, expected_bytes = settled_step(fresh)
        found[name] = {
            "same_keys": same_keys,
            "bitwise": switched.keys() == expected.keys()
            and all(torch.equal(switched[key], expected[key]) for key in expected),
            "peak_bytes": switched_bytes,
            "expected_peak_bytes": expected_bytes,
        }
    return found


def main():
    rank = int(os.environ["RANK"])
    store = f"file://{sys.argv[1]}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    mesh = init_device_mesh("cpu", (2,))
    found = compared(EAGER, mesh)
    torch._dynamo.reset()
    found |= compared(COMPILED, mesh)
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
