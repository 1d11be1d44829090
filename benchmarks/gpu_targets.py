"""Targets of `gpu.py`: cuts of Llama 3 8B and of a DeepSeek-V3 of 16B parameters, in bfloat16, as large as one card.

    actune estimate --device sim:h100 --target 'benchmarks/gpu_targets.py:llama?layers=12' --plan none --plan full

Layers have the published sizes; there are fewer of them. Weights, gradients and logits are bfloat16, and the optimizer
is SGD without momentum, so that activations, which plans are about, are most of what the card holds.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from actune.targets.dense import (
    Decoder,
    DecoderSizes,
    DenseTarget,
    FeedForward,
    TransformerBlock,
    linear,
    rope_table,
    rotate,
)
from actune.targets.moe import ExpertSizes, MoE

LEARNING_RATE = 1e-4

# Llama 3 8B: arXiv:2407.21783, table 3.
LLAMA = DecoderSizes(layers=14, batch=5, seq=4096, width=4096, heads=32, kv_heads=8, hidden=14336, vocabulary=128256)

# The sizes that torchtitan calls deepseek_v3 16B and DeepSeek published as V2-Lite: arXiv:2405.04434, appendix B.
DEEPSEEK = DecoderSizes(layers=9, batch=7, seq=4096, width=2048, heads=16, kv_heads=16, hidden=10944, vocabulary=102400)
EXPERTS = ExpertSizes(experts=64, top_k=6, hidden=1408)
SHARED_EXPERTS = 2
LATENT, CONTENT, POSITION, VALUE = 512, 128, 64, 128  # widths: of the latent; and of each head


class CardDecoder(Decoder):
    """A decoder that is made on the meta device and filled on the card, where billions of numbers are drawn at once."""

    def __init__(self, sizes, layers, position_width):
        super().__init__(sizes, layers)
        self.position_width = position_width
        self.register_buffer("rope", rope_table(sizes.seq, position_width), persistent=False)

    def init_weights(self):
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                nn.init.normal_(parameter, std=0.02)
        self.rope.copy_(rope_table(self.rope.shape[1], self.position_width))


class LatentAttention(nn.Module):
    """Multi-head latent attention (arXiv:2405.04434), none for queries: x of shape (B, T, width) to the same shape."""

    def __init__(self, sizes, latent, content, position, value):
        super().__init__()
        self.heads, self.latent = sizes.heads, latent
        self.content, self.position, self.value = content, position, value
        self.wq = linear(sizes.width, sizes.heads * (content + position))
        self.wkv_a = linear(sizes.width, latent + position)
        self.kv_norm = nn.RMSNorm(latent, eps=1e-5)
        self.wkv_b = linear(latent, sizes.heads * (content + value))
        self.wo = linear(sizes.heads * value, sizes.width)

    def forward(self, x, rope):
        B, T, _ = x.shape
        q = self.wq(x).view(B, T, self.heads, -1).transpose(1, 2)
        q_content, q_position = q.split([self.content, self.position], dim=-1)
        latent, k_position = self.wkv_a(x).split([self.latent, self.position], dim=-1)
        kv = self.wkv_b(self.kv_norm(latent)).view(B, T, self.heads, -1).transpose(1, 2)
        k_content, v = kv.split([self.content, self.value], dim=-1)
        k_position = rotate(k_position.unsqueeze(1), rope).expand(-1, self.heads, -1, -1)
        q = torch.cat([q_content, rotate(q_position, rope)], dim=-1)
        k = torch.cat([k_content, k_position], dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(attended.transpose(1, 2).reshape(B, T, -1))


class LatentBlock(nn.Module):
    """One pre-norm layer with latent attention, and a mixture or, without experts, a dense feed-forward."""

    def __init__(self, sizes, experts, widths):
        super().__init__()
        self.attention = LatentAttention(sizes, *widths)
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(sizes.width, eps=1e-5) for _ in range(2))
        if experts is None:
            self.feed_forward = FeedForward(sizes.width, sizes.hidden)
        else:
            self.moe = MoE(sizes.width, experts)
            self.moe.shared_experts = FeedForward(sizes.width, SHARED_EXPERTS * experts.hidden)

    def forward(self, x, rope):
        h = x + self.attention(self.attention_norm(x), rope)
        mixed = self.moe if hasattr(self, "moe") else self.feed_forward
        return h + mixed(self.ffn_norm(h))


class CardTarget(DenseTarget):
    """What both models have in common: how they come to be, and the optimizer."""

    def decoder(self):
        raise NotImplementedError

    def model(self):
        with torch.device("meta"):
            return self.decoder().to(torch.bfloat16)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


class Llama(CardTarget):
    def decoder(self):
        layers = {str(i): TransformerBlock(self.sizes) for i in range(self.sizes.layers)}
        return CardDecoder(self.sizes, layers, self.sizes.head_width)


class DeepSeek(CardTarget):
    def __init__(self, sizes, experts, widths):
        super().__init__(sizes)
        self.experts, self.widths = experts, widths

    def decoder(self):
        layers = {
            str(i): LatentBlock(self.sizes, self.experts if i else None, self.widths) for i in range(self.sizes.layers)
        }
        return CardDecoder(self.sizes, layers, position_width=self.widths[2])


def llama(layers=LLAMA.layers, batch=LLAMA.batch, seq=LLAMA.seq):
    return Llama(replace(LLAMA, layers=layers, batch=batch, seq=seq))


def deepseek(layers=DEEPSEEK.layers, batch=DEEPSEEK.batch, seq=DEEPSEEK.seq):
    return DeepSeek(replace(DEEPSEEK, layers=layers, batch=batch, seq=seq), EXPERTS, (LATENT, CONTENT, POSITION, VALUE))


def tiny_llama(layers=3):
    """The same code in sizes for a processor."""
    sizes = DecoderSizes(layers=layers, batch=2, seq=64, width=64, heads=4, kv_heads=2, hidden=192, vocabulary=128)
    return Llama(sizes)


def tiny_deepseek(layers=3):
    sizes = DecoderSizes(layers=layers, batch=2, seq=64, width=64, heads=4, kv_heads=4, hidden=192, vocabulary=128)
    return DeepSeek(sizes, ExpertSizes(experts=4, top_k=2, hidden=64), (32, 16, 8, 16))
