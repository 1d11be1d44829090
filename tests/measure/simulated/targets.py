"""Targets for simulated devices, named as `tests.measure.simulated.targets:NAME`."""

import torch
from torch import nn

from tests.measure.targets import Layer, Model, Plain


class ReadingLayer(Layer):
    def forward(self, x):
        return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)


class ReadsAValue(Plain):
    layer = ReadingLayer


class PickingLayer(Layer):
    def forward(self, x):
        return x + x[x.sum(dim=-1).nonzero().squeeze(-1)].sum(dim=0)


class DependsOnData(Plain):
    layer = PickingLayer


class ReadsValuesWhileBuilt(Plain):
    def model(self):
        model = Model()
        if model.layers[0].w1.weight.sum().item() > 1e9:
            raise AssertionError
        return model


class Shares(Plain):
    """Tied weights, a table that is a plain attribute too, a frozen parameter, a parameter with an attribute."""

    def model(self):
        model = Model()
        model.head, model.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        model.tied.weight = model.head.weight
        model.head.weight.note = "kept"
        model.register_buffer("table", torch.arange(3.0))
        model.table_again = model.table
        model.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        return model
