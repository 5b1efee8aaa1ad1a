"""The block of the Transformers that read a customer's purchases.

Source: Vaswani et al., "Attention is all you need" (2017), with the norm before each part (Xiong et al. 2020). Shape
suffixes: B rows, T places, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm_attention, self.norm_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.forward_in, self.forward_out = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BTD: torch.Tensor, seen_B11T: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, D) -> (B, T, D). seen: the places that may be attended to; None: each place sees those before it."""
        size = x_BTD.shape
        parts = self.query_key_value(self.norm_attention(x_BTD)).view(*size[:2], 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen_B11T, dropout_p=dropout, is_causal=seen_B11T is None
        )
        x_BTD = x_BTD + F.dropout(self.out(mixed.transpose(1, 2).reshape(size)), self.dropout, self.training)
        inner = F.gelu(self.forward_in(self.norm_forward(x_BTD)))
        return x_BTD + F.dropout(self.forward_out(inner), self.dropout, self.training)
