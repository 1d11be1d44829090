"""Targets of `prediction.py` that no built-in one stands for: biases and dropout, an encoder-decoder, routed bytes."""

import torch
import torch.nn.functional as F
from torch import nn

TOKENS = 128
VOCABULARY = 512


class BiasedLayer(nn.Module):
    """Pre-norm attention and GELU, with biases and dropout everywhere, as GPT-2."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        hidden = F.gelu(self.up(self.norm2(x)))
        return x + F.dropout(self.down(hidden), self.dropout, self.training)


class BiasedDecoder(nn.Module):
    vocab_size = VOCABULARY

    def __init__(self, width=128, heads=4, layers=4, dropout=0.1):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(TOKENS, width)
        self.layers = nn.ModuleList([BiasedLayer(width, heads, dropout) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Biased:
    """The decoder with random tokens."""

    def model(self):
        return BiasedDecoder()

    def batch(self, step):
        return torch.randint(VOCABULARY, (4, TOKENS + 1), generator=torch.Generator().manual_seed(step))

    def loss(self, model, batch):
        logits = model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


class EncoderDecoder:
    """T5 of transformers: two stacks, with cross attention from each layer of the second into the first's output."""

    def model(self):
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=VOCABULARY,
            d_model=128,
            d_kv=32,
            d_ff=384,
            num_layers=3,
            num_decoder_layers=4,
            num_heads=4,
            dropout_rate=0.1,
            use_cache=False,
            decoder_start_token_id=0,
        )
        return T5ForConditionalGeneration(config)

    def batch(self, step):
        generator = torch.Generator().manual_seed(step)
        return {
            "input_ids": torch.randint(VOCABULARY, (4, TOKENS), generator=generator),
            "labels": torch.randint(VOCABULARY, (4, TOKENS // 2), generator=generator),
        }

    def loss(self, model, batch):
        return model(**batch).loss


class LoopOverExperts:
    """Qwen3-MoE of transformers with its loop over experts: what a layer holds depends on where tokens are routed."""

    def model(self):
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        config = Qwen3MoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            moe_intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_experts=4,
            num_experts_per_tok=2,
            mlp_only_layers=[],
            use_cache=False,
            experts_implementation="eager",
        )
        return Qwen3MoeForCausalLM(config)

    def batch(self, step):
        tokens = torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(step))
        return {"input_ids": tokens, "labels": tokens}

    def loss(self, model, batch):
        return model(**batch).loss
