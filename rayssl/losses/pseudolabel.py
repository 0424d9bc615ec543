"""Learning from pseudo-labels: FixMatch (Sohn et al., NeurIPS 2020, Eq. 4) and DASO (Oh, Kim and Kweon, CVPR 2022).

DASO blends two pseudo-labels: ``p`` from a linear classifier, and ``q`` from the similarity to class prototypes. A step
calls `semantic_logits` for the weak and the strong view, `blend` with `blend_weights` for ``p`` and ``q``, then
`consistency` with the blended label and `alignment` with ``q``. All functions use only the rows of their own rank. The
mean of each loss over ranks is the loss of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayssl.losses.rows import precise


def consistency(strong_logits: Tensor, targets: Tensor, confident: Tensor) -> Tensor:
    """FixMatch's L_u: cross-entropy of the strong view against the pseudo-label of the weak one; a scalar, float32. ::

        L_u = 1/B sum over confident i of -log softmax(strong_logits_i)[targets_i]

    The sum is divided by all B rows, so that the loss is small if few rows are confident; if none is, it is zero.
    ``strong_logits [B, C]``; ``targets [B]`` int64, with any value if ``confident [B]`` (bool) is false. The arithmetic
    is float32 (float64 for float64 inputs), even under autocast. Raises `ValueError` if the shapes do not fit, or if
    there are no rows.
    """
    rows = len(strong_logits)
    if targets.shape != (rows,) or confident.shape != (rows,) or confident.dtype != torch.bool or not rows:
        raise ValueError(
            f"targets {tuple(targets.shape)} and confident {confident.dtype} {tuple(confident.shape)} do not fit "
            f"logits {tuple(strong_logits.shape)}"
        )
    with torch.autocast(device_type=strong_logits.device.type, enabled=False):
        counted = targets.masked_fill(~confident, _IGNORED)
        return functional.cross_entropy(precise(strong_logits), counted, ignore_index=_IGNORED, reduction="sum") / rows


def alignment(strong_q_logits: Tensor, q: Tensor, present: Tensor) -> Tensor:
    """DASO's L_align: cross-entropy of the strong view's similarities against the weak view's; a scalar, float32. ::

        L_align = 1/B sum over i and present c of -q_ic log softmax(strong_q_logits_i)[c]

    ``strong_q_logits [B, C]`` are the `semantic_logits` of the strong view. ``q [B, C]`` is the softmax of those of the
    weak view; no gradient flows to it. ``present [C]`` is bool. If no class is present, the loss is zero and has no
    gradient. There is no threshold. The precision is as in `consistency`. Raises `ValueError` if the shapes do not fit.
    """
    if q.shape != strong_q_logits.shape:
        raise ValueError(f"q {tuple(q.shape)} does not fit logits {tuple(strong_q_logits.shape)}")
    _check_present(present, q.shape[1])
    with torch.autocast(device_type=q.device.type, enabled=False):
        # an absent class has q = 0 and a logarithm of -inf, and their product would be NaN
        log_share = precise(strong_q_logits).log_softmax(dim=1).masked_fill(~present, 0)
        return -(precise(q.detach()) * log_share).sum(dim=1).mean()


def semantic_logits(features: Tensor, prototypes: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """The similarity of each row to the prototype of each class, ``cos(z_i, c_k) / temperature``: float32 ``[B, C]``.

    ``features [B, D]`` and ``prototypes [C, D]`` may have any norm. Gradient flows to the features only. A class that
    is not ``present [C]`` (bool) has -inf, so that its softmax is 0. If no class is present, all logits are zero: their
    softmax is uniform, and `alignment` ignores it. A row of zeros is equally near to all present classes and has no
    gradient. The temperature (T_proto; 0.05 published) divides the similarity; inside the cosine it would have no
    effect. The argmax is the template that USADTM matches (Han et al., NeurIPS 2020). The precision is as in
    `consistency`. Raises `ValueError` if the shapes do not fit or the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if features.shape[1:] != prototypes.shape[1:]:
        raise ValueError(f"features {tuple(features.shape)} and prototypes {tuple(prototypes.shape)} do not fit")
    _check_present(present, len(prototypes))
    with torch.autocast(device_type=features.device.type, enabled=False):
        cosine = _direction(precise(features)) @ _direction(precise(prototypes.detach())).T
        nothing = torch.where(present.any(), float("-inf"), 0.0).to(cosine.dtype)
        return torch.where(present, cosine / temperature, nothing)


@torch.no_grad()
def matched(features: Tensor, prototypes: Tensor, present: Tensor, *, threshold: float) -> Tensor:
    """Which rows match a template by USADTM's public rule: bool ``[B]``.

    A row matches if its highest cosine to the prototypes reaches ``threshold``, and if the same prototype is the
    nearest by Euclidean distance. ``features [B, D]``, ``prototypes [C, D]`` and ``present [C]`` are as in
    `semantic_logits`, whose argmax is the class that is matched. Lengths matter to the distance. If no class is
    present, no row matches. Raises `ValueError` as `semantic_logits` does.
    """
    cosine = semantic_logits(features, prototypes, present, temperature=1.0)
    with torch.autocast(device_type=features.device.type, enabled=False):
        apart = torch.cdist(precise(features), precise(prototypes)).masked_fill(~present, float("inf"))
    highest, nearest = cosine.max(dim=1)
    return (highest >= threshold) & (nearest == apart.argmin(dim=1)) & present.any()


@torch.no_grad()
def blend(p: Tensor, q: Tensor, weights: Tensor) -> Tensor:
    """DASO's pseudo-label, ``[B, C]``, without gradient, float32 at least.

    ``k'`` is the class with the highest probability in ``p``, and ``v = weights [C]`` comes from `blend_weights`::

        p'_i = (1 - v_k') p_i + v_k' q_i,    k' = argmax p_i

    ``p, q [B, C]`` are the distributions of the linear classifier and of the prototypes for the same weak view. If a
    class is frequent among the pseudo-labels, ``p`` gets less weight, because the linear classifier prefers frequent
    classes. Raises `ValueError` if the shapes do not fit.
    """
    if p.shape != q.shape or weights.shape != p.shape[1:]:
        raise ValueError(f"p {tuple(p.shape)}, q {tuple(q.shape)} and weights {tuple(weights.shape)} do not fit")
    share = precise(weights)[p.argmax(dim=1)][:, None]
    return (1 - share) * precise(p) + share * precise(q)


@torch.no_grad()
def blend_weights(histogram: Tensor, *, temperature: float) -> Tensor:
    """The weight of the semantic pseudo-label for each class: float32 ``[C]`` in 0..1. ::

        v_k = m_k^(1/T) / max over j of m_j^(1/T)

    ``histogram [C]``: how often each class was the pseudo-label (m >= 0). The most frequent class has weight 1. If all
    counts are 0, all weights are 0, and `blend` does not change ``p``. ``temperature`` T is T_dist: 1.5 published if
    the labelled and the unlabelled utterances have the same distribution over classes, 0.3 if not. Raises `ValueError`
    if it is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    share = histogram.double() / histogram.max().clamp_min(1)  # divided before the power, which could overflow
    return share.pow(1 / temperature).float()


_IGNORED = -100  # a target that cross_entropy skips


def _direction(x: Tensor) -> Tensor:
    """Rows of norm 1. A row of zeros stays zero, with gradient 0; division by a small number would make it 1e12."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norm > 0, norm, float("inf"))


def _check_present(present: Tensor, classes: int) -> None:
    if present.shape != (classes,) or present.dtype != torch.bool:
        raise ValueError(f"present must be bool {(classes,)}, got {present.dtype} {tuple(present.shape)}")
