"""What SAC itself costs for each op: it looks at every op of a region, in forward and again in recomputation."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor, nn

from actune.ac import Application
from actune.measure.device import Device
from actune.plan import Plan, Rule, Treatment

_OPS = 100
_ROUNDS = 5


class _SmallOps(nn.Module):
    """Ops that take next to no time themselves. Each needs its input in the backward, so all are recomputed."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(_OPS):
            x = torch.sin(x)
        return x


class _OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _SmallOps()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def sac_op_time_s(device: Device) -> float:
    """Seconds that SAC with rules by name adds to a step for each op of a region, over full AC.

    On the device's own clock, as the median over a few rounds of one forward and backward each.
    """
    by_name = Treatment("selective", save_every_nth_mm=0, save_ops=(), save=(".::sin#1",))
    model = _OneLayer()
    x = torch.ones(1, device=device.torch_device, requires_grad=True)
    times_s = {}
    for treatment in (Treatment("full"), by_name):
        application = Application(model, Plan((Rule(("layer",), treatment),)), ("layer",))
        application.attach()
        times_s[treatment.policy] = [_step_time_s(device, model, x) for _ in range(_ROUNDS)]
        application.detach()
    full_s, selective_s = (statistics.median(times_s[policy]) for policy in ("full", "selective"))
    return max(0.0, selective_s - full_s) / _OPS


def _step_time_s(device: Device, model: nn.Module, x: Tensor) -> float:
    with (timer := device.step_timer()):
        torch.autograd.grad(model(x), x)
    return sum(timer.stretches_s)
