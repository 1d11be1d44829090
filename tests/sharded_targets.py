"""A small decoder that FSDP2 shards layer by layer, and jobs of it of which one rank misbehaves."""

import os
import signal
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional

WIDTH, VOCABULARY = 32, 64


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (w(x).unflatten(-1, (-1, 8)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        return self.wo(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.w2(functional.silu(self.w1(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention, self.feed_forward = Attention(), FeedForward()

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class Decoder(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


class Unsharded:
    """Each rank has a batch of its own."""

    def __init__(self, layers=4, seq=128, batch=8):
        self.layer_count, self.shape = layers, (batch, seq)

    def model(self):
        return Decoder(self.layer_count)

    def batch(self, step):
        rank = int(os.environ.get("RANK", 0))
        generator = torch.Generator().manual_seed(1000 * rank + step)
        return torch.randint(VOCABULARY, self.shape, generator=generator)

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


class Sharded(Unsharded):
    def parallelize(self, model):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)


class OnMeta(Sharded):
    """As torchtitan builds a model: shapes, shards, storage, values."""

    def model(self):
        with torch.device("meta"):
            return super().model()


class TensorParallel(Unsharded):
    def batch(self, step):
        return torch.randint(VOCABULARY, self.shape, generator=torch.Generator().manual_seed(step))

    def parallelize(self, model):
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        column, row = ColwiseParallel(), RowwiseParallel()
        for layer in model.layers:
            plan = {f"attention.{name}": column for name in ("wq", "wk", "wv")} | {"attention.wo": row}
            parallelize_module(layer, mesh, plan | {"feed_forward.w1": column, "feed_forward.w2": row})
        return model


class _LastRankFails(Sharded):
    """Calls `misbehave` on the last rank in a recomputation, which is a layer's second forward in a step."""

    def model(self):
        model = super().model()
        model.layers[1].attention.register_forward_pre_hook(self.count)
        return model

    def count(self, module, inputs):
        self.forwards += 1
        if self.forwards > 1 and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            self.misbehave()

    def loss(self, model, batch):
        self.forwards = 0
        return super().loss(model, batch)


class LastRankRaises(_LastRankFails):
    def misbehave(self):
        raise ValueError("this rank has had enough")


class LastRankKilled(_LastRankFails):
    def misbehave(self):
        os.kill(os.getpid(), signal.SIGKILL)


class LastRankHangs(_LastRankFails):
    def misbehave(self):
        time.sleep(1000)


class LastRankBuildsAnother(Sharded):
    def model(self):
        return Decoder(4 - int(os.environ["RANK"]))
