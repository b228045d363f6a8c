"""The scales of singular value fine-tuning (Transformer², arXiv 2501.06252): one number z a singular component.

    W(z) = U diag(s · z) Vᵀ = W + U diag(s · (z − 1)) Vᵀ,        z in Rʳ, z = 1 is the base model

The second form is the one computed: at z = 1 it is W exactly, whatever the rounding of the SVD. Two parametrisations of
z by the trained vector p (r,), both starting at z_eff = 1:

    linear     z_eff = p
    sigmoid    z_eff = z · Σs / Σ(s·z) with z = sigmoid(p): the sum of the singular values is kept (the reference code)

Only the effective scale z_eff, what really multiplies s, is ever stored or ranked.
"""

from typing import Literal

import torch
from torch import Tensor

from palora.algebra.decomposition import Decomposition

Parametrisation = Literal["linear", "sigmoid"]
START = {
    "linear": 1.0,
    "sigmoid": 0.1,
}  # of p. Any constant is z_eff = 1 for sigmoid; the reference code's is about 0.1


def effective_scale(p: Tensor, s: Tensor, parametrisation: Parametrisation) -> Tensor:
    """z_eff (r,) from the trained vector p (r,) and the singular values s (r,)."""
    if parametrisation == "linear":
        return p
    z = torch.sigmoid(p)
    return z * s.sum() / (s * z).sum()


def expert_delta(d: Decomposition, z: Tensor) -> Tensor:
    """U diag(s · (z − 1)) Vᵀ (m, n), in the dtype of U and V: what the scales z (r,) change in W."""
    return (d.U * (d.s * (z - 1)).to(d.U.dtype)) @ d.Vh
