"""The built-in mixture-of-experts target: a DeepSeek-like decoder, with the module names that torchtitan gives it.

DeepSeekMoE: Dai et al. 2024 (arXiv:2401.06066); sigmoid scores: DeepSeek-V3 (arXiv:2412.19437). The attention is the
dense target's grouped-query attention, not DeepSeek's latent one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actune.targets.dense import Attention, Decoder, DecoderSizes, DenseTarget, FeedForward, TransformerBlock, linear


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """The sizes of a mixture.

    Attributes:
        experts: number of routed experts.
        top_k: routed experts per token.
        hidden: inner width of each expert, the shared one included.
    """

    experts: int = 8
    top_k: int = 2
    hidden: int = 128

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise ValueError(f"hidden: {self.hidden} is not positive.")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k: {self.top_k} is outside of 1 to {self.experts}, the number of experts.")


class TokenChoiceRouter(nn.Module):
    """Each token chooses its experts: x of shape (N, width) to weights and expert indices, both of shape (N, top_k)."""

    def __init__(self, width: int, sizes: ExpertSizes) -> None:
        super().__init__()
        self.top_k = sizes.top_k
        self.gate = linear(width, sizes.experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of a token's experts add up to 1."""
        scores = torch.sigmoid(self.gate(x))
        weights, indices = scores.topk(self.top_k, dim=-1, sorted=False)
        return weights / weights.sum(dim=-1, keepdim=True), indices


class GroupedExperts(nn.Module):
    """SwiGLU experts as grouped matmuls: x of shape (M, width), sorted by expert, to the same shape.

    They compute in bfloat16, as torchtitan's do: grouped_mm takes float32 in eager mode, but compile and fake tensors
    refuse it (torch 2.13, `_meta_grouped_mm_common`). Weights, gradients, input and output keep their dtype.
    """

    def __init__(self, width: int, sizes: ExpertSizes) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(sizes.experts, sizes.hidden, width))
        self.w2 = nn.Parameter(torch.empty(sizes.experts, width, sizes.hidden))
        self.w3 = nn.Parameter(torch.empty(sizes.experts, sizes.hidden, width))
        for weight in (self.w1, self.w2, self.w3):
            nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Expert e gets rows ends[e - 1] to ends[e]; `ends` is int32 of shape (experts,)."""
        w1, w2, w3 = (weight.to(torch.bfloat16).transpose(-2, -1) for weight in (self.w1, self.w2, self.w3))
        rows = x.to(torch.bfloat16)
        gate = F.grouped_mm(rows, w1, offs=ends)
        up = F.grouped_mm(rows, w3, offs=ends)
        return F.grouped_mm(F.silu(gate) * up, w2, offs=ends).to(x.dtype)


class MoE(nn.Module):
    """Routed experts beside a shared one: x of shape (B, T, width) to the same shape."""

    def __init__(self, width: int, sizes: ExpertSizes) -> None:
        super().__init__()
        self.router = TokenChoiceRouter(width, sizes)
        self.experts = GroupedExperts(width, sizes)
        self.shared_experts = FeedForward(width, sizes.hidden)
        self.expert_count = sizes.experts

    def forward(self, x: Tensor) -> Tensor:
        """Sorts the tokens by expert, runs the experts, and puts their outputs back.

        The tokens are repeated first and then permuted, so that both gathers and their gradients write each row once:
        adding up top_k copies in a scatter would depend on the order of threads, and gradients would not repeat.
        """
        B, T, D = x.shape
        tokens = x.reshape(B * T, D)
        weights, indices = self.router(tokens)
        top_k = indices.shape[1]
        expert_of_row, order = indices.reshape(-1).sort(stable=True)
        ends = torch.searchsorted(
            expert_of_row, torch.arange(self.expert_count, device=x.device), right=True, out_int32=True
        )
        rows = tokens.unsqueeze(1).expand(-1, top_k, -1).reshape(-1, D)
        routed = self.experts(rows[order], ends)[order.argsort()].view(B * T, top_k, D)
        mixed = (routed * weights.unsqueeze(-1)).sum(dim=1)
        out: Tensor = mixed.view(B, T, D) + self.shared_experts(x)
        return out


class MoETransformerBlock(nn.Module):
    """One pre-norm layer with a mixture: x of shape (B, T, width) to the same shape."""

    def __init__(self, sizes: DecoderSizes, experts: ExpertSizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.moe = MoE(sizes.width, experts)
        self.attention_norm = nn.RMSNorm(sizes.width, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(sizes.width, eps=1e-5)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """Attention, then the mixture, each beside a residual."""
        h = x + self.attention(self.attention_norm(x), rope)
        out: Tensor = h + self.moe(self.ffn_norm(h))
        return out


class MoETarget(DenseTarget):
    """The workload of `moe-tiny` and `moe-tiny-12`: the first layer is dense, as in DeepSeek's models."""

    def __init__(self, sizes: DecoderSizes, experts: ExpertSizes) -> None:
        super().__init__(sizes)
        self.experts = experts

    def model(self) -> nn.Module:
        """A new decoder on the CPU, in float32."""
        layers: dict[str, nn.Module] = {"0": TransformerBlock(self.sizes)}
        for i in range(1, self.sizes.layers):
            layers[str(i)] = MoETransformerBlock(self.sizes, self.experts)
        return Decoder(self.sizes, layers)
