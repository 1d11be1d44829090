"""Targets that misbehave in one way each, named as `tests.measure.targets:NAME`."""

import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.w1 = nn.Linear(width, 2 * width, bias=False)
        self.w2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        return x + self.w2(torch.sin(self.w1(x)))


class Model(nn.Module):
    def __init__(self, layer=Layer):
        super().__init__()
        self.layers = nn.ModuleList([layer() for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Plain:
    """Deterministic, and counts what it is asked for."""

    layer = Layer

    def __init__(self):
        self.batches_asked_for = []

    def model(self):
        return Model(self.layer)

    def batch(self, step):
        self.batches_asked_for.append(step)
        return torch.randn(4, 8, generator=torch.Generator().manual_seed(step))

    def loss(self, model, batch):
        return model(batch).square().mean()

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)


class CountingLayer(Layer):
    """Computes something else each second time: recomputation is not what forward was."""

    second_factor = 2.0

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x * (1.0 if self.calls % 2 else self.second_factor))


class DiffersWhenRecomputed(Plain):
    layer = CountingLayer

    def loss(self, model, batch):
        for layer in model.layers:
            layer.calls = 0
        return super().loss(model, batch)


class Noisy(Plain):
    """No step repeats: as atomics on a card, but more."""

    def loss(self, model, batch):
        noise = torch.randn((), generator=torch.Generator().manual_seed(len(self.batches_asked_for)))
        return super().loss(model, batch) * (1 + 1e-4 * noise)


class ChecksItself(Plain):
    def model(self):
        model = super().model()
        list(model.layers.children())[1].gradient_checkpointing = True
        return model


class CompilesAPiece(Plain):
    """Its loss is code that it compiles by itself."""

    def __init__(self):
        super().__init__()
        self.square = torch.compile(lambda x: x.square().mean(), backend="eager")

    def loss(self, model, batch):
        return self.square(model(batch))


class NoisyLater(Plain):
    """Its first two steps are the same by luck."""

    def loss(self, model, batch):
        steps = max(2, len(self.batches_asked_for))
        noise = torch.randn((), generator=torch.Generator().manual_seed(steps))
        return super().loss(model, batch) * (1 + 1e-4 * noise)


class NotANumber(Plain):
    def loss(self, model, batch):
        return super().loss(model, batch) * torch.tensor(float("nan"))


class OverflowingLayer(CountingLayer):
    second_factor = float("inf")


class OverflowsWhenRecomputed(DiffersWhenRecomputed):
    layer = OverflowingLayer


class ModelWithExtra(Model):
    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.ones(()))


class LosesAGradient(Plain):
    """One parameter has a gradient only where the first layer is not wrapped."""

    def model(self):
        return ModelWithExtra()

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return loss + model.extra - model.extra.detach() if type(model.layers[0]) is Layer else loss


class Leaks(Plain):
    def __init__(self):
        super().__init__()
        self.kept = []

    def loss(self, model, batch):
        self.kept.append(torch.zeros(2**20))
        return super().loss(model, batch)


class Raises(Plain):
    def loss(self, model, batch):
        raise {"memory": MemoryError("no more"), "value": ValueError("bad value")}[self.what]

    what = "value"


class RunsOutOfMemory(Raises):
    what = "memory"


class AsksForTooMuch(Plain):
    def loss(self, model, batch):
        return super().loss(model, batch) + torch.empty(2**60, dtype=torch.uint8).sum()


class OnMeta(Plain):
    def model(self):
        with torch.device("meta"):
            model = Model()
            model.head = nn.Linear(8, 8, bias=False)
            model.tied = nn.Linear(8, 8, bias=False)
        model.tied.weight = model.head.weight
        model.register_buffer("table", torch.arange(3.0))
        return model


class OnMetaWithoutInit(Plain):
    """A buffer on the meta device in a module that has no way to fill it."""

    def model(self):
        with torch.device("meta"):
            model = Model()
            model.register_buffer("table", torch.arange(3.0))
        return model


class FlippingGate(nn.Linear):
    """Each second call turns the scores over: recomputation chooses other experts."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1.0 if self.calls % 2 else -1.0)


class Mixture(nn.Module):
    """Every expert runs on all tokens, so that another choice changes no shape."""

    def __init__(self, width=8):
        super().__init__()
        self.gate = FlippingGate(width, 4, bias=False)
        self.experts = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(4)])

    def forward(self, x):
        weights, chosen = self.gate(x).topk(2)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        rows = torch.arange(x.shape[0]).unsqueeze(1)
        return x + (torch.sin(outputs[rows, chosen]) * weights.unsqueeze(-1)).sum(1)


class MixtureLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.moe = Mixture()

    def forward(self, x):
        return self.moe(x)


class Reroutes(Plain):
    layer = MixtureLayer

    def loss(self, model, batch):
        for layer in model.layers:
            layer.moe.gate.calls = 0
        return super().loss(model, batch)
