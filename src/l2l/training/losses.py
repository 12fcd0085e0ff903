"""Losses: pure functions of logits and targets, in float32 (or float64), whatever narrower format these come in: of a
sum over a mask bfloat16 keeps two digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def segmentation_loss(logits: Tensor, target: Tensor, accepted: Tensor | None = None) -> Tensor:
    """Cross-entropy plus dice, per sample.

    Args:
        logits: (B, h, w). target: (B, h, w) in [0, 1], the foreground share of each cell.
        accepted: (B, h, w) in [0, 1], how far each cell counts; all if not given. A sample with nothing accepted
            contributes 0, not NaN.

    Returns:
        (B,) float32.
    """
    logits, target = _wide(logits), _wide(target)
    weight = torch.ones_like(target) if accepted is None else _wide(accepted)
    total = weight.sum((1, 2))
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross = (cross * weight).sum((1, 2)) / total.clamp_min(1.0)
    p = logits.sigmoid() * weight
    y = target * weight
    dice = 1 - (2 * (p * y).sum((1, 2)) + 1) / (p.sum((1, 2)) + y.sum((1, 2)) + 1)
    return cross + dice


def reliability_loss(logits: Tensor, iou: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy between a predicted reliability and the IoU that came out, mean over valid samples.

    A proper score: the best prediction is the expected IoU.

    Args:
        logits: (B,). iou: (B,) in [0, 1]. valid: (B,) bool.
    """
    each = F.binary_cross_entropy_with_logits(_wide(logits), _wide(iou), reduction="none")
    return (each * valid).sum() / valid.sum().clamp_min(1)
