"""Cholesky factors of Hessians that may be singular: damping is raised until there is one.

    H / m + damping I = L L'        m = mean(diag H)

A Hessian that cannot be factored gets ten times the damping, again and again; what was used is returned
and recorded, never a silent pass. H is divided by m first, so that tiny and huge activations factor alike.
The factor is computed in the place of the damped Hessian: of a wide linear each of them is a gigabyte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faqbench.quantization.reproducible import one_thread

MAX_DAMPING = 1e4


class HessianError(ValueError):
    """A Hessian that no damping makes factorable; the engine adds which linear's it was."""


def damped_cholesky(
    hessian: Tensor, damping: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, float]:
    """Return the lower factor L of the damped Hessian over its mean diagonal, and the damping used.

    Args:
        hessian: [in_features, in_features], symmetric, its diagonal not all zero.
        damping: relative to the mean of the diagonal.
        dtype: of the factor; None is that of the Hessian.

    Raises:
        HessianError: when no damping up to 10^4 helps, as with NaN.
    """
    dtype = dtype or hessian.dtype
    mean = hessian.diagonal().to(dtype).mean()
    while damping <= MAX_DAMPING:
        damped = hessian.to(dtype, copy=True).div_(mean)
        damped.diagonal().add_(damping)
        lower = damped.T  # in LAPACK's order of elements, and equal, since it is symmetric
        failed = torch.empty((), dtype=torch.int32, device=hessian.device)
        with one_thread(hessian.device):
            torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed and bool(lower.isfinite().all()):
            return lower, damping
        damping *= 10
    raise HessianError("the Hessian cannot be factored at any damping; it may hold NaN or infinity")
