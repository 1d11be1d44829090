"""Targets whose layers are called, fed or trained in an odd way each, named as `tests.cost.odd_models:NAME`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 16
ROWS = 24
CLASSES = 7
DEPTH = 4


class Block(nn.Module):
    """Keeps more than its input, so that treatments differ, and has a second matrix, so that it is found."""

    def __init__(self, width: int = WIDTH, hidden: int = 3 * WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w2(torch.nn.functional.gelu(self.w1(self.norm(x))))


class Stacked(nn.Module):
    """An embedding, layers and a head."""

    def __init__(self, layers: list[nn.Module] | None = None) -> None:
        super().__init__()
        self.embedding = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([Block() for _ in range(DEPTH)] if layers is None else layers)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.embedding(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Odd:
    """What the targets here have in common."""

    def model(self) -> nn.Module:
        return Stacked()

    def batch(self, step: int) -> Tensor:
        return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(step))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).float().square().mean()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])


# How often layers are called


class SharedLayer(Odd):
    """One layer that is called several times, as in ALBERT."""

    class Model(Stacked):
        def __init__(self) -> None:
            super().__init__([Block(), Block()])

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            for _ in range(3):
                x = self.layers[0](x)
            return self.head(self.layers[1](x))

    def model(self) -> nn.Module:
        return self.Model()


class SkippedLayer(Odd):
    """A layer that is never called."""

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            for number in (0, 1, 3):
                x = self.layers[number](x)
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model()


class LayerDrop(Odd):
    """Layers that each step calls or doesn't, as its random numbers have it."""

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            for layer in self.layers:
                if torch.rand(()) < 0.6:
                    x = layer(x)
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model()


class SkipsEverySecondStep(Odd):
    """A layer that every second forward calls, whichever step that is."""

    class Model(Stacked):
        def __init__(self) -> None:
            super().__init__()
            self.forwards = 0

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            self.forwards += 1
            for layer in self.layers[: DEPTH - self.forwards % 2]:
                x = layer(x)
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model()


class TwoForwards(Odd):
    """The model is called twice in a step, as for two views of a picture."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - model(batch.flip(0))).square().mean()


class OneLayer(Odd):
    def model(self) -> nn.Module:
        return Stacked([Block()])


class Siblings(Odd):
    """Two towers that see the same batch, the outputs compared."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = Stacked([Block() for _ in range(2)])
            self.right = Stacked([Block(WIDTH, 5 * WIDTH) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) @ self.right(x).T

    def model(self) -> nn.Module:
        return self.Model()


class ResultsOfBranches(Odd):
    """Two layers beside each other, whose results are added; the later one's backward need not come first."""

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            x = self.layers[0](x) + self.layers[1](x)
            return self.head(self.layers[3](self.layers[2](x)))

    def model(self) -> nn.Module:
        return self.Model()


class BackwardOutOfOrder(Odd):
    """The first branch goes on where the second ends, so that its backward comes between others."""

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            left = self.layers[0](x)
            right = self.layers[1](x)
            return self.head(self.layers[3](self.layers[2](left)) + right)

    def model(self) -> nn.Module:
        return self.Model()


class CollectedByHooks(Odd):
    """What a router returns is collected by a hook on it, as transformers does, for a loss after all layers."""

    class Routed(Block):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.router(x).softmax(-1)

    class Model(Stacked):
        def __init__(self) -> None:
            super().__init__([CollectedByHooks.Routed() for _ in range(DEPTH)])
            self.collected: list[Tensor] | None = None
            for layer in self.layers:
                layer.router.register_forward_hook(self.collect)

        def collect(self, module: nn.Module, args: Any, output: Tensor) -> None:
            if self.collected is not None:  # in a recomputation nothing is
                self.collected.append(output)

        def forward(self, x: Tensor) -> Tensor:
            self.collected = []
            output = super().forward(x)
            collected, self.collected = self.collected, None
            return output.square().mean() + sum(scores.logsumexp(-1).mean() for scores in collected)

    def model(self) -> nn.Module:
        return self.Model()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(batch)
        return loss


class PositionsForAll(Odd):
    """Each layer is given the positions, which the embedding of positions holds beyond all layers' backwards."""

    class Placed(Block):
        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            return super().forward(x + (positions > 0).unsqueeze(-1))

    class Model(Stacked):
        def __init__(self) -> None:
            super().__init__([PositionsForAll.Placed() for _ in range(DEPTH)])
            self.positions = nn.Embedding(ROWS, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            positions = torch.arange(ROWS)
            x = self.embedding(x) + self.positions(positions)
            for layer in self.layers:
                x = layer(x, positions)
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model()


# What is trained


class FrozenEncoder(Odd):
    """An encoder that runs without gradients, then a decoder that is trained."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList([Block() for _ in range(2)])
            self.decoder = nn.ModuleList([Block(WIDTH, 2 * WIDTH) for _ in range(3)])
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                for layer in self.encoder:
                    x = layer(x)
            for layer in self.decoder:
                x = layer(x)
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model()


class FrozenLowerLayers(Odd):
    """The lower layers have frozen weights and see no gradient, but run outside of no_grad."""

    def model(self) -> nn.Module:
        model = Stacked()
        for module in (model.embedding, *model.layers[:2]):
            module.requires_grad_(False)
        return model


class FrozenEmbedding(Odd):
    """The input of the first layer needs no gradient."""

    def model(self) -> nn.Module:
        model = Stacked()
        model.embedding.requires_grad_(False)
        return model


class LowRank(Odd):
    """Frozen matrices with a few trained ones beside them."""

    class Adapted(Block):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)
            self.down = nn.Linear(WIDTH, 2, bias=False)
            self.up = nn.Linear(2, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.up(self.down(x))

    def model(self) -> nn.Module:
        model = Stacked([self.Adapted() for _ in range(DEPTH)])
        model.embedding.requires_grad_(False)
        model.head.requires_grad_(False)
        return model


class TiedEnds(Odd):
    """The head's matrix is the embedding's."""

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            for layer in self.layers:
                x = layer(x)
            return nn.functional.linear(x, self.embedding.weight)

    def model(self) -> nn.Module:
        return self.Model()


class TiedLayers(Odd):
    """Two layers share a matrix: whose backward comes first makes its gradient."""

    def model(self) -> nn.Module:
        model = Stacked()
        model.layers[2].w1.weight = model.layers[0].w1.weight
        return model


class HalfPrecision(Odd):
    def model(self) -> nn.Module:
        return Stacked().bfloat16()

    def batch(self, step: int) -> Tensor:
        return super().batch(step).bfloat16()


class Autocast(Odd):
    """Mixed precision: the weights' copies are cached as long as autocast is on."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().loss(model, batch)


class PlainSgd(Odd):
    """An optimizer without a state."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)


# How backward is called


class MicroBatches(Odd):
    """The loss is computed in parts, with a backward after all but the last."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        first, second = batch.chunk(2)
        super().loss(model, first).backward()
        return super().loss(model, second)


class BackwardsInForwardOrder(Odd):
    """Two forwards, and the first one's backward comes first."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        first, second = (super(BackwardsInForwardOrder, self).loss(model, half) for half in batch.chunk(2))
        first.backward()
        return second


class GradientPenalty(Odd):
    """The gradient of the input is part of the loss: there are two backwards of one forward."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        batch = batch.clone().requires_grad_()
        loss = super().loss(model, batch)
        (gradient,) = torch.autograd.grad(loss, batch, create_graph=True)
        return loss + gradient.square().sum()
