"""What accepting a pixel is worth. Pure functions; every reward is separable over pixels, so credit is local.

A reward map r (B, h, w) means: accepting pixel p of sample b is worth r[b, p], refusing it is worth nothing. A sample
is worth the sum of its accepted pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.labelling.sesm import entropy


def boundary(label: Tensor) -> Tensor:
    """Cells of a boolean map (B, h, w) that have a neighbour (3x3) of the other kind, as a boolean map."""
    value = label.float()[:, None]
    return (F.max_pool2d(value, 3, 1, 1) != -F.max_pool2d(-value, 3, 1, 1))[:, 0]


def weights(label: Tensor, truth: Tensor | None = None, *, background: float = 0.2, edge: float = 0.5) -> Tensor:
    """How much each cell counts, (B, h, w), summing to 1 in each sample.

    The foreground of `label` (and of `truth`, where known) counts 1 - `background` in all, the rest `background` in
    all, however small the object is: if cells counted alike, the easy background of a small object would pay for
    anything.
    Cells at an outline count `1 + edge` times as much as their like. A map with one kind of cell only gives all to it.
    """
    object_ = label if truth is None else label | truth
    count = 1 + edge * boundary(object_).float()
    front, back = count * object_, count * ~object_
    total_front, total_back = front.sum((1, 2), keepdim=True), back.sum((1, 2), keepdim=True)
    share = torch.where(total_front == 0, 1.0, torch.where(total_back == 0, 0.0, background))
    return (1 - share) * front / total_front.clamp_min(1e-6) + share * back / total_back.clamp_min(1e-6)


def truth_reward(label: Tensor, truth: Tensor, *, wrong: float = 3.0) -> Tensor:
    """On held-out labels: 1 - (1 + `wrong`) (y - label)^2, weighted (see `weights`).

    A cell that is surely right earns 1, one that is surely wrong costs `wrong`. With `wrong` = 3 a label of 0.5 is
    worth nothing (this is the Brier skill score): a soft label that is calibrated is worth accepting however unsure it
    is, and what there is to refuse is what is *surer than it should be*. Of a label cut at 0.5, accepting pays where
    the chance to be right is above wrong / (1 + wrong).

    Args:
        label: the pseudo-label, bool or in [0, 1], (B, h, w). truth: bool (B, h, w).
        wrong: lambda.
    """
    error = (truth.float() - label.float()) ** 2
    return weights(label > 0.5, truth) * (1 - (1 + wrong) * error)


def gain_reward(label: Tensor, truth: Tensor, model: Tensor) -> Tensor:
    """On held-out labels: how much IoU the label has gained over what the model believes already, cell by cell.

    With J = I_q / U_q the soft IoU of the model, (label - q) (y - J (1 - y)) / U_label sums over a sample to just the
    soft IoU of the label less J, for IoU_p - J = (I_p - I_q - J (U_p - U_q)) / U_p. One cell is added to each I and U,
    so that nothing is divided by none and an empty truth counts.

    A cell whose label says what the model says earns nothing, however right it is: there is nothing to learn from it.
    Where they differ, a cell of the object pays as soon as it is right more often than J / (1 + J): half of the time
    only where all else is right already.

    Args:
        label: the pseudo-label, bool or in [0, 1], (B, h, w). model: Q in [0, 1], (B, h, w).
        truth: bool, or its chance in [0, 1], (B, h, w).
    """
    p, y, q = label.float(), truth.float(), model.float()
    union = (p + y - p * y).sum((1, 2), keepdim=True) + 1
    known = ((q * y).sum((1, 2), keepdim=True) + 1) / ((q + y - q * y).sum((1, 2), keepdim=True) + 1)
    return (p - q) * (y - known * (1 - y)) / union


def agreement_reward(label: Tensor, proposal: Tensor, model: Tensor, fused: Tensor, rho: Tensor) -> Tensor:
    """Where nobody knows the truth: rho x (agreement of prior and model, in [-1, 1]) minus the label's entropy.

    Args:
        label: bool (B, h, w). proposal, model, fused: probabilities (B, h, w). rho: (B,) in [0, 1], 0 without a prior.
    """
    agree = 1 - 2 * (proposal - model).abs()
    return weights(label) * (rho[:, None, None] * agree - entropy(fused))


def utility_reward(label: Tensor, logits: Tensor, features: Tensor, direction: Tensor) -> Tensor:
    """One-step utility: would a gradient step on this pixel also lower the loss on held-out labels?

    For the last layer of the segmenter the gradient of a pixel's cross-entropy is (sigmoid(m_p) - label_p) f_p, so its
    inner product with the held-out gradient is exact, costs one product per pixel, and needs no second backward pass.

    Args:
        label: bool (B, h, w). logits: m (B, h, w). features: f (B, D, h, w).
        direction: the held-out gradient of the last layer, (D,).

    Returns:
        (B, h, w), scaled so that the mean absolute utility of a pixel of the batch is 1, cut at +-3, then weighted.
    """
    step = torch.einsum("bdhw,d->bhw", features.float(), direction.float())
    gain = (logits.sigmoid() - label.float()) * step
    return weights(label) * (gain / gain.abs().mean().clamp_min(1e-12)).clamp(-3, 3)


def held_out_direction(logits: Tensor, features: Tensor, truth: Tensor) -> Tensor:
    """Gradient of the held-out cross-entropy in the last layer's weights, (D,): mean over pixels of (sigma(m) - y) f.

    Foreground and background pixels of each sample weigh the same, or the background would drown the object.
    """
    y = truth.float()
    share = y / y.sum((1, 2), keepdim=True).clamp_min(1) + (1 - y) / (1 - y).sum((1, 2), keepdim=True).clamp_min(1)
    error = (logits.sigmoid() - y) * share / len(y)
    return torch.einsum("bhw,bdhw->d", error, features.float())
