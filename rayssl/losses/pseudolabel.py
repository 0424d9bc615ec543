"""Learning from pseudo-labels: FixMatch (Sohn et al., NeurIPS 2020, Eq. 4) and DASO (Oh, Kim and Kweon, CVPR 2022).

DASO blends the pseudo-label ``p`` of a linear classifier with the ``q`` of a similarity to class prototypes. In a step:
`semantic_logits` of weak and strong view, `blend` of ``p`` and ``q`` by `blend_weights`, then `consistency` with the
blended label and `alignment` with ``q``. No function looks beyond its own rows: the mean over ranks of each loss is
that of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def consistency(strong_logits: Tensor, targets: Tensor, confident: Tensor) -> Tensor:
    """FixMatch's L_u: cross-entropy of the strong view against the pseudo-label of the weak one; a scalar, float32. ::

        L_u = 1/B sum over confident i of -log softmax(strong_logits_i)[targets_i]

    The mean is over all B rows, so that few confident ones weigh little; with none the loss is zero. ``strong_logits
    [B, C]``; ``targets [B]`` int64, of any value where ``confident [B]`` bool is false. The arithmetic is float32
    (float64 for float64 inputs) even under autocast. Raises `ValueError` for shapes that do not fit, or no rows.
    """
    rows = len(strong_logits)
    if targets.shape != (rows,) or confident.shape != (rows,) or confident.dtype != torch.bool or not rows:
        raise ValueError(
            f"targets {tuple(targets.shape)} and confident {confident.dtype} {tuple(confident.shape)} do not fit "
            f"logits {tuple(strong_logits.shape)}"
        )
    with torch.autocast(device_type=strong_logits.device.type, enabled=False):
        counted = targets.masked_fill(~confident, _IGNORED)
        return functional.cross_entropy(_wide(strong_logits), counted, ignore_index=_IGNORED, reduction="sum") / rows


def alignment(strong_q_logits: Tensor, q: Tensor, present: Tensor) -> Tensor:
    """DASO's L_align: cross-entropy of the strong view's similarities against the weak view's; a scalar, float32. ::

        L_align = 1/B sum over i and present c of -q_ic log softmax(strong_q_logits_i)[c]

    ``strong_q_logits [B, C]`` are `semantic_logits` of the strong view, ``q [B, C]`` the softmax of those of the weak
    view, which takes no gradient; ``present [C]`` bool. Where no class is present the loss is zero and has no gradient.
    There is no threshold. Precision as in `consistency`. Raises `ValueError` for shapes that do not fit.
    """
    if q.shape != strong_q_logits.shape:
        raise ValueError(f"q {tuple(q.shape)} does not fit logits {tuple(strong_q_logits.shape)}")
    _check_present(present, q.shape[1])
    with torch.autocast(device_type=q.device.type, enabled=False):
        # what is absent has q = 0 and a logarithm of -inf, whose product is no number
        log_share = _wide(strong_q_logits).log_softmax(dim=1).masked_fill(~present, 0)
        return -(_wide(q.detach()) * log_share).sum(dim=1).mean()


def semantic_logits(features: Tensor, prototypes: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """Similarity of each row to each class's prototype, ``cos(z_i, c_k) / temperature``: float32 ``[B, C]``.

    ``features [B, D]`` and ``prototypes [C, D]`` are of any norm; gradient flows to the features only. A class that is
    not ``present [C]`` (bool) has -inf, so that no softmax gives it anything. With no class present at all the logits
    are zero: their softmax is uniform, prefers no label, and `alignment` leaves it out. A row of zeros is as near to
    every present class, and takes no gradient. The temperature (T_proto; 0.05 published) divides the similarity: inside
    the cosine it would cancel. The argmax is the template that USADTM matches (Han et al., NeurIPS 2020). Precision as
    in `consistency`. Raises `ValueError` for shapes that do not fit and a temperature that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if features.shape[1:] != prototypes.shape[1:]:
        raise ValueError(f"features {tuple(features.shape)} and prototypes {tuple(prototypes.shape)} do not fit")
    _check_present(present, len(prototypes))
    with torch.autocast(device_type=features.device.type, enabled=False):
        cosine = _direction(_wide(features)) @ _direction(_wide(prototypes.detach())).T
        nothing = torch.where(present.any(), float("-inf"), 0.0).to(cosine.dtype)
        return torch.where(present, cosine / temperature, nothing)


@torch.no_grad()
def blend(p: Tensor, q: Tensor, weights: Tensor) -> Tensor:
    """DASO's pseudo-label, ``[B, C]``, without gradient, float32 at least.

    With ``k'`` the class that the linear classifier prefers, and ``v = weights [C]`` those of `blend_weights`::

        p'_i = (1 - v_k') p_i + v_k' q_i,    k' = argmax p_i

    ``p, q [B, C]`` are the linear and the semantic distribution of the same weak view. A label that is frequent among
    the pseudo-labels is hence doubted, for the linear classifier leans to it. Raises `ValueError` for shapes that do
    not fit.
    """
    if p.shape != q.shape or weights.shape != p.shape[1:]:
        raise ValueError(f"p {tuple(p.shape)}, q {tuple(q.shape)} and weights {tuple(weights.shape)} do not fit")
    share = _wide(weights)[p.argmax(dim=1)][:, None]
    return (1 - share) * _wide(p) + share * _wide(q)


@torch.no_grad()
def blend_weights(histogram: Tensor, *, temperature: float) -> Tensor:
    """How much of the semantic label each class takes: float32 ``[C]`` in 0..1. ::

        v_k = m_k^(1/T) / max over j of m_j^(1/T)

    ``histogram [C]``: how often each class was the pseudo-label (m >= 0, not all need be). The most frequent one has
    weight 1, and of an empty histogram all have 0: `blend` then leaves ``p`` as it is. ``temperature`` T is T_dist: 1.5
    published where labelled and unlabelled classes are distributed alike, .3 where not. Raises `ValueError` for one
    that is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    share = histogram.double() / histogram.max().clamp_min(1)  # before the power, which may be too large a number
    return share.pow(1 / temperature).float()


_IGNORED = -100  # a target that cross_entropy skips


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _direction(x: Tensor) -> Tensor:
    """Rows of norm 1; rows of zeros stay so, with gradient 0 (1e12 if they were divided by a small number instead)."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(norm > 0, norm, float("inf"))


def _check_present(present: Tensor, classes: int) -> None:
    if present.shape != (classes,) or present.dtype != torch.bool:
        raise ValueError(f"present must be bool {(classes,)}, got {present.dtype} {tuple(present.shape)}")
