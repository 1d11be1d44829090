"""Targets of a tiny model. Most of them misbehave, each in its own way."""

import ctypes
import os
import signal
import sys
import time

import torch
from torch import nn


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Part(), Part()

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Sound:
    """Nothing wrong with it; activations take most of its peak."""

    def model(self):
        return Model()

    def batch(self, step):
        return torch.randn(1024, 16, generator=torch.Generator().manual_seed(step))

    def loss(self, model, batch):
        return model(batch).square().mean()


class OnePartLayers(Sound):
    def model(self):
        return nn.Sequential(*(Part() for _ in range(3)))


class ModelRaises(Sound):
    def model(self):
        raise ValueError("the weights are missing")


class ForwardRaises(Sound):
    def loss(self, model, batch):
        raise RuntimeError("shapes do not fit")


class ModelHangs(Sound):
    def model(self):
        time.sleep(1000)


class ForwardHangs(Sound):
    def loss(self, model, batch):
        return self.wait_for_nothing()

    def wait_for_nothing(self):
        time.sleep(1000)


class KillsItself(Sound):
    def loss(self, model, batch):
        os.kill(os.getpid(), signal.SIGKILL)


class SysExits(Sound):
    def loss(self, model, batch):
        sys.exit(3)


class Segfaults(Sound):
    def loss(self, model, batch):
        ctypes.string_at(0)


class NoLayers(Sound):
    def model(self):
        return nn.Linear(16, 16)


class Prints(Sound):
    def loss(self, model, batch):
        print("x" * 100_000)
        os.write(1, b'{"kind":"measured"}\n')
        return super().loss(model, batch)


class ForkedChildReturns(Sound):
    """The child comes out of the target's code by an exception, into actune's."""

    def model(self):
        if os.fork() == 0:
            raise SystemExit(0)
        return Model()


class ForksAndDies(Sound):
    def loss(self, model, batch):
        if os.fork() == 0:
            time.sleep(1000)
            os._exit(0)
        os._exit(3)


class OutOfMemory(Sound):
    def loss(self, model, batch):
        return torch.empty(2**45).sum()


class MessageIsNoUtf8(Sound):
    """As messages are that name a file whose name is no UTF-8."""

    def loss(self, model, batch):
        raise FileNotFoundError("no such file: missing-\udcff")


class _BadUnderAPlan(Sound):
    """Runs well without AC, and calls `misbehave` in a recomputation, which is a layer's second forward in a step."""

    def model(self):
        model = Model()
        model.layers[1].first.register_forward_pre_hook(self.count)
        return model

    def count(self, module, inputs):
        self.forwards += 1
        if self.forwards > 1:
            self.misbehave()

    def loss(self, model, batch):
        self.forwards = 0
        return super().loss(model, batch)


class KilledUnderAPlan(_BadUnderAPlan):
    def misbehave(self):
        os.kill(os.getpid(), signal.SIGKILL)


class HangsUnderAPlan(_BadUnderAPlan):
    def misbehave(self):
        time.sleep(1000)


class OutOfMemoryUnderAPlan(_BadUnderAPlan):
    def misbehave(self):
        raise MemoryError
