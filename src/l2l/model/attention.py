"""Attention for short sequences, and the transformer layer made of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from l2l.model.rows import RowDropout


def attend(query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    """Multi-head attention where keys are masked.

    On a CPU the products are written out: for tens of tokens the fused kernel's backward pass costs five times as much.

    Args:
        query: (B, heads, N, D). key, value: (B, heads, L, D).
        real: (B, L) bool, true where a key may be looked at; at least one in each row.

    Returns:
        (B, heads, N, D).
    """
    mask = real[:, None, None]
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return weights.to(value.dtype) @ value


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and a feed-forward part of twice the width.

    Args:
        width: channels.
        heads: attention heads.
        dropout: on what each part adds.
    """

    def __init__(self, width: int, *, heads: int = 4, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_part = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = RowDropout(dropout)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x (B, N, C), real (B, N) bool -> (B, N, C)."""
        parts = self.inward(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D)
        told = attend(query, key, value, real).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.outward(told))
        return x + self.dropout(self.forward_part(self.norm_forward(x)))


