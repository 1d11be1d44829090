"""A model of your own as a target: `actune search --target examples/my_target.py:MyTarget --budget 60%`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Causal multi-head attention with one projection for queries, keys and values, as in GPT-2."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, T, width) to the same shape."""
        batch, seq, width = x.shape
        q, k, v = self.qkv(x).view(batch, seq, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout_p = self.dropout if self.training else 0.0
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout_p)
        return self.proj(out.transpose(1, 2).reshape(batch, seq, width))


class Block(nn.Module):
    """One layer: attention and an MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """From (B, T, width) to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A small GPT. It knows nothing of actune, and has no checkpointing of its own."""

    def __init__(self, vocabulary: int, seq: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(seq, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) to logits (B, T, vocabulary)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class MyTarget:
    """What actune needs to know: how to build the model, what a step's inputs are, and what its loss is.

    The arguments can be set on the command line: `--target 'examples/my_target.py:MyTarget?layers=12&seq=512'`.
    """

    def __init__(self, layers: int = 6, batch: int = 4, seq: int = 256, width: int = 128, dropout: float = 0.0) -> None:
        self.vocabulary = 512
        self.depth = layers
        self.batch_size = batch
        self.seq = seq
        self.width = width
        self.dropout = dropout

    def model(self) -> nn.Module:
        """A new model; actune seeds torch before it calls this, and moves the model to the device after."""
        return GPT(self.vocabulary, self.seq, self.depth, self.width, heads=4, dropout=self.dropout)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each of shape (batch, seq): random, but the same for the same step."""
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(self.vocabulary, (self.batch_size, self.seq + 1), generator=generator)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross entropy, a scalar."""
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Optional: without it actune uses AdamW."""
        return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
