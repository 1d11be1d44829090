"""Targets whose layers are odd in what they take, return or do, named as `tests.cost.odd_layers:NAME`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .odd_models import DEPTH, ROWS, WIDTH, Block, Odd, Stacked

# What goes in and comes out


class Pairs(Odd):
    """Layers take and return a tuple."""

    class Layer(Block):
        def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x, skip = pair
            return super().forward(x + skip), 2 * x

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            pair = (self.embedding(x), torch.zeros(()))
            for layer in self.layers:
                pair = layer(pair)
            return self.head(pair[0] * pair[1])

    def model(self) -> nn.Module:
        return self.Model([self.Layer() for _ in range(DEPTH)])


class Dicts(Odd):
    """Layers return a dict, with an output that nobody needs."""

    class Layer(Block):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"norm": x.detach().norm(dim=-1), "hidden": super().forward(x)}

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            for layer in self.layers:
                x = layer(x)["hidden"]
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model([self.Layer() for _ in range(DEPTH)])


class Keywords(Odd):
    """Layers take keywords only, one of them a tuple that all share."""

    class Layer(Block):
        def forward(self, *, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
            cosine, sine = angles
            return super().forward(hidden * cosine) + hidden.flip(-1) * sine

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            angle = torch.linspace(0, 1, ROWS * WIDTH).view(ROWS, WIDTH)
            angles = (angle.cos(), angle.sin())
            for layer in self.layers:
                x = layer(hidden=x, angles=angles)
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model([self.Layer() for _ in range(DEPTH)])


class HiddenStates(Odd):
    """All layers' outputs are collected, and returned to the loss, which needs only one."""

    class Model(Stacked):
        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            x = self.embedding(x)
            states = [x]
            for layer in self.layers:
                x = layer(x)
                states.append(x)
            return self.head(x), states

    def model(self) -> nn.Module:
        return self.Model()

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        logits, _ = model(batch)
        return logits.square().mean()


class IntermediateLoss(HiddenStates):
    """The loss reads a layer's output in the middle as well."""

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        logits, states = model(batch)
        return logits.square().mean() + states[2].square().mean()


class AuxiliaryLoss(Odd):
    """Each layer leaves a loss of its own behind, as routers do."""

    class Layer(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x = super().forward(x)
            return x, x.square().mean()

    class Model(Stacked):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embedding(x)
            losses = []
            for layer in self.layers:
                x, loss = layer(x)
                losses.append(loss)
            return self.head(x), torch.stack(losses).sum()

    def model(self) -> nn.Module:
        return self.Model([self.Layer() for _ in range(DEPTH)])

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        logits, loss = model(batch)
        return logits.square().mean() + loss


class LongSkips(Odd):
    """A decoder's layers are given what the encoder's returned, as in a U-Net."""

    class Decoding(Block):
        def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * skip)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Linear(WIDTH, WIDTH)
            self.down = nn.ModuleList([Block() for _ in range(3)])
            self.up = nn.ModuleList([LongSkips.Decoding() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            skips = []
            for layer in self.down:
                x = layer(x)
                skips.append(x)
            for layer in self.up:
                x = layer(x, skips.pop())
            return x

    def model(self) -> nn.Module:
        return self.Model()


class DenselyConnected(Odd):
    """Each layer is given all outputs before it."""

    class Layer(Block):
        def forward(self, *xs: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(torch.stack(xs).sum(0))

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            xs = [self.embedding(x)]
            for layer in self.layers:
                xs.append(layer(*xs))
            return self.head(xs[-1])

    def model(self) -> nn.Module:
        return self.Model([self.Layer() for _ in range(DEPTH)])


# What layers are made of


class InPlace(Odd):
    """Ops that write to what they were given."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1 = nn.Linear(WIDTH, 3 * WIDTH)
            self.relu = nn.ReLU(inplace=True)
            self.w2 = nn.Linear(3 * WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y = self.w2(self.relu(self.w1(x)))
            y += x
            return y

    def model(self) -> nn.Module:
        return Stacked([self.Layer() for _ in range(DEPTH)])


class InPlaceBetween(Odd):
    """The model adds to what a layer returned, in place."""

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            for layer in self.layers:
                before = x
                x = layer(x)
                x += before
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model()


class Views(Odd):
    """Layers that return a view of what they were given, and of what they made."""

    class Layer(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().forward(x).view(ROWS, WIDTH), x[: ROWS // 2]

    class Model(Stacked):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x)
            for layer in self.layers:
                x, half = layer(x)
                x = torch.cat([half, x[ROWS // 2 :]])
            return self.head(x)

    def model(self) -> nn.Module:
        return self.Model([self.Layer() for _ in range(DEPTH)])


class Dropout(Odd):
    """Layers that draw random numbers."""

    class Layer(Block):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.3, training=self.training)

    def model(self) -> nn.Module:
        return Stacked([self.Layer() for _ in range(DEPTH)])


class Nested(Odd):
    """A stack in a stack: the outer layers hold inner ones."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(WIDTH, WIDTH)
            self.blocks = nn.ModuleList([Block() for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.mix(x)

    def model(self) -> nn.Module:
        return Stacked([self.Layer() for _ in range(3)])


class Convolutions(Odd):
    """A residual network with more channels and fewer pixels in its second half."""

    class Layer(nn.Module):
        def __init__(self, channels: int, out_channels: int) -> None:
            super().__init__()
            stride = out_channels // channels
            self.first = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
            self.norm = nn.BatchNorm2d(out_channels)
            self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
            self.short = nn.Conv2d(channels, out_channels, 1, stride=stride)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.short(x) + self.second(torch.relu(self.norm(self.first(x)))))

    def model(self) -> nn.Module:
        layers = [self.Layer(a, b) for a, b in ((4, 4), (4, 4), (4, 8), (8, 8))]
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers)

    def batch(self, step: int) -> Tensor:
        return torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(step))


class ManySizes(Odd):
    """Batches of another size in each step."""

    def batch(self, step: int) -> Tensor:
        return torch.randn(ROWS + 3 * step, WIDTH, generator=torch.Generator().manual_seed(step))
