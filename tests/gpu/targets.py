"""Small targets for a card, in bfloat16."""

import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from actune.targets.dense import DecoderSizes, DenseTarget

SIZES = DecoderSizes(layers=4, batch=4, seq=512, width=256, heads=4, kv_heads=2, hidden=768, vocabulary=512)


class Small(DenseTarget):
    def __init__(self):
        super().__init__(SIZES)

    def model(self):
        return super().model().to(torch.bfloat16)


class FlexAttention(nn.Module):
    """In place of the decoder's attention, compiled by itself as torchtitan's is."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.flex = torch.compile(flex_attention)

    def forward(self, x, rope):
        batch, seq, _ = x.shape
        q, k, v = (
            w(x).view(batch, seq, -1, SIZES.width // SIZES.heads).transpose(1, 2)
            for w in (self.attention.wq, self.attention.wk, self.attention.wv)
        )
        return self.attention.wo(self.flex(q, k, v, enable_gqa=True).transpose(1, 2).reshape(batch, seq, -1))


class Flex(Small):
    def model(self):
        model = super().model()
        for layer in model.layers.values():
            layer.attention = FlexAttention(layer.attention)
        return model
