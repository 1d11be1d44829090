"""The built-in dense target: a Llama-like decoder, with the module names that torchtitan gives its Llama.

Llama: Touvron et al. 2023 (arXiv:2302.13971); grouped-query attention: Ainslie et al. 2023 (arXiv:2305.13245);
rotary embedding: Su et al. 2021 (arXiv:2104.09864).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actune.targets.tokens import next_token_loss, random_tokens


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """The sizes of a decoder and its batch.

    The defaults make a step matmul-bound on one CPU thread (so that what recomputation costs shows) and its
    activations larger than parameters, gradients and optimizer state together (so that there is something to save):
    many tokens on a narrow model, and a vocabulary whose logits do not outweigh the layers.

    Attributes:
        layers: number of layers.
        batch: sequences in a batch.
        seq: tokens in a sequence.
        width: of the residual stream, d.
        heads: query heads; width / heads is a head's width and must be even, for the rotary embedding.
        kv_heads: key and value heads; divides heads.
        hidden: inner width of the dense feed-forward.
        vocabulary: number of tokens.
    """

    layers: int
    batch: int = 4
    seq: int = 256
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 384
    vocabulary: int = 512

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive.")
        if self.width % (2 * self.heads) != 0:
            raise ValueError(f"width: {self.width} does not split into {self.heads} heads of even width.")
        if self.heads % self.kv_heads != 0:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide the {self.heads} query heads.")

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A Linear without bias, drawn from a normal of standard deviation 0.02."""
    layer = nn.Linear(in_features, out_features, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def rope_table(seq: int, head_width: int, base: float = 10000.0) -> Tensor:
    """Cosines and sines of the rotary embedding, shape (2, seq, head_width)."""
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(seq, dtype=torch.float32), frequencies).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotates each position of x, shape (B, heads, T, head_width), by its row of `rope`."""
    cos, sin = rope
    low, high = x.chunk(2, dim=-1)
    rotated: Tensor = x * cos + torch.cat((-high, low), dim=-1) * sin
    return rotated


class Attention(nn.Module):
    """Causal grouped-query attention: x of shape (B, T, width) to the same shape."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.head_width = sizes.head_width
        self.wq = linear(sizes.width, sizes.heads * sizes.head_width)
        self.wk = linear(sizes.width, sizes.kv_heads * sizes.head_width)
        self.wv = linear(sizes.width, sizes.kv_heads * sizes.head_width)
        self.wo = linear(sizes.heads * sizes.head_width, sizes.width)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Attends over the positions up to each one."""
        B, T, _ = x.shape
        q, k, v = (w(x).view(B, T, -1, self.head_width).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        out = F.scaled_dot_product_attention(rotate(q, rope), rotate(k, rope), v, is_causal=True, enable_gqa=True)
        attended: Tensor = self.wo(out.transpose(1, 2).reshape(B, T, -1))
        return attended


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): x of shape (…, width) to the same shape."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = linear(width, hidden)
        self.w2 = linear(hidden, width)
        self.w3 = linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Applies w2(silu(w1 x) · w3 x)."""
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class TransformerBlock(nn.Module):
    """One pre-norm layer: x of shape (B, T, width) to the same shape."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.feed_forward = FeedForward(sizes.width, sizes.hidden)
        self.attention_norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(sizes.width, eps=1e-5)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Attention, then the feed-forward, each beside a residual."""
        h = x + self.attention(self.attention_norm(x), rope)
        out: Tensor = h + self.feed_forward(self.ffn_norm(h))
        return out


class Decoder(nn.Module):
    """Tokens of shape (B, T) to logits of shape (B, T, vocabulary). Weights come from torch's global generator."""

    def __init__(self, sizes: DecoderSizes, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleDict(layers)
        self.norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.output = linear(sizes.width, sizes.vocabulary)
        self.rope: Tensor
        self.register_buffer("rope", rope_table(sizes.seq, sizes.head_width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token that follows each position."""
        x = self.tok_embeddings(tokens)
        rope = self.rope[:, : tokens.shape[1]]
        for layer in self.layers.values():
            x = layer(x, rope)
        logits: Tensor = self.output(self.norm(x))
        return logits


class DenseTarget:
    """The workload of `dense-tiny` and `dense-tiny-12`: next-token prediction on random tokens."""

    def __init__(self, sizes: DecoderSizes) -> None:
        self.sizes = sizes

    def model(self) -> nn.Module:
        """A new decoder on the CPU, in float32."""
        return Decoder(self.sizes, {str(i): TransformerBlock(self.sizes) for i in range(self.sizes.layers)})

    def batch(self, step: int) -> Tensor:
        """Tokens of shape (batch, seq + 1), int64, the same for the same step."""
        return random_tokens(step, batch=self.sizes.batch, seq=self.sizes.seq + 1, vocabulary=self.sizes.vocabulary)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """Mean cross entropy, a scalar."""
        return next_token_loss(model, batch)
