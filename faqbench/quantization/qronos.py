"""Qronos: the weights solved for anew against the full precision output, then rounded as by GPTQ.

Legend, as in `gptq.py`: W [rows, in] already scaled; H = X̂'X̂ / n and D = (X - X̂)'X̂ / n of the scaled
input; G = X'X̂ / n = D + H; U the upper Cholesky factor of (H + lambda I)^-1.

    lambda = alpha · the largest eigenvalue of H
    1. the first column:   q_0 = Q((W G_:0 - sum over j > 0 of W_j H_j0) / H_00)
    2. the others at once: W_j for j > 0 that minimise |X̂ W' - X W_before'|², the first at q_0, with
       a penalty of lambda that pulls toward W_before
    3. GPTQ over them

The second step is the solution without q_0, W (G + lambda I)(H + lambda I)^-1, less what GPTQ's own update
moves for the first column's error. So Qronos is QEP's correction at strength 1 and damping lambda, then
GPTQ, but that the first column is rounded from another value; that is how it is computed here.

Reference: Qronos, arXiv 2505.11695, and brevitas's `graph/qronos.py`. Differs from the reference: columns
are worked on in GPTQ's lazy blocks and with its groups (see `gptq.py`), whose scales are of W_before
where they are static; where H cannot be factored, which leaves a linear plainly rounded there, lambda is
raised and recorded, and at last refused (`reproducible.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from faqbench.config.experiment import QuantSection
from faqbench.quantization.gptq import Problem, inverse_factor
from faqbench.quantization.grid import Grid, Rounded, RoundInput
from faqbench.quantization.reproducible import one_thread

_N_POWER_STEPS = 30


def round_qronos(
    weight: Tensor, known: RoundInput, grid: Grid, quant: QuantSection, limit: Tensor | None
) -> Rounded:
    """Round a scaled weight [rows, in_features] by Qronos: the value `round=qronos` of the table.

    Raises:
        HessianError: when no damping makes the Hessian factorable.
    """
    assert known.hessian is not None and known.cross is not None
    settings = quant.gptq
    problem = Problem.of(weight, known.hessian, known.cross, grid, settings.act_order, limit)
    assert problem.cross is not None
    # lambda is too small for float32 to factor with.
    hessian, columns = problem.hessian.double(), problem.columns.double()
    size = hessian.diagonal().mean()
    damping = quant.qronos.alpha * float(largest_eigenvalue(hessian) / size)
    upper, damping, condition = inverse_factor(hessian, damping)
    upstream = problem.cross.double().T @ columns  # (W D)'
    numerator = hessian[0] @ columns + upstream[0] - hessian[0, 1:] @ columns[1:]
    first = (numerator / hessian[0, 0]).to(weight.dtype)
    problem.columns += (upper.T @ (upper @ (upstream / size))).to(weight.dtype)
    codes = problem.round(upper.to(weight.dtype), settings.block_size, first=first)
    return problem.rounded(codes, damping, condition)


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Return the largest eigenvalue of a symmetric, positive semidefinite matrix, by power iteration."""
    vector = matrix[matrix.diagonal().argmax()]
    with one_thread(matrix.device):
        for _ in range(_N_POWER_STEPS):
            vector = matrix @ (vector / torch.linalg.vector_norm(vector))
        size: Tensor = torch.linalg.vector_norm(vector)
    return size
