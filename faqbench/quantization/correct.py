"""QEP and LoaQ: weights moved toward the full precision output, given the error made upstream.

Legend, tokens as rows: X the linear's input in the full precision model, X̂ in the model quantized so
far; R and R̂ the residual stream that its output is added to; Ĥ = X̂'X̂ / n, C = X̂'T / n for a target T.

    W* = W + C' (Ĥ + lambda I)^-1                       lambda = damping · mean(diag Ĥ)

which minimises |X̂ W*' - (X̂ W' + T)|² with a penalty that pulls toward W, never toward 0. The methods
differ in the part T of the full precision output that is still to be made up for:

    QEP              T = strength (X - X̂) W'
    LoaQ, residual   T = strength (X - X̂) W' + residual_strength (R - R̂)          for o and down
    LoaQ, norm_aware T = strength (r X - X̂) W' + residual_strength (r R - R̂), each token weighted by
                     1 / rms̃², where r = rms̃ / rms, and rms, rms̃ are the norms' factors of the sums
                     R + X W' and R̂ + X̂ W', both frozen, which keeps it least squares
    LoaQ, linear     QEP for every role

Reference: QEP, arXiv 2504.09629; LoaQ, arXiv 2509.06297, as restated in arXiv 2512.01546. The weighting
of the norm-aware variant is our reading of "freezes both RMS factors".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.config.experiment import CorrectionSection
from faqbench.quantization.activations import Accumulator, GramSum, RoleStatistics
from faqbench.quantization.damping import damped_cholesky
from faqbench.quantization.reproducible import one_thread

_EPSILON = 1e-6  # of the norms


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Corrected weights and the damping that was used.

    Attributes:
        weight: [out_features, in_features].
        damping: relative to the mean of the Hessian's diagonal.
        strength: of the correction.
    """

    weight: Tensor
    damping: float
    strength: float


class CorrectionAccumulator:
    """Sums up Ĥ and C over batches of tokens, for the linears of one role.

    Args:
        weights: of each linear, float32 [out_features, in_features].
        settings: strengths and variant; `strength` is the role's own number here.
        uses_residual: whether T has a residual part: LoaQ's o and down.
    """

    def __init__(
        self, weights: dict[str, Tensor], settings: CorrectionSection, *, uses_residual: bool
    ) -> None:
        assert isinstance(settings.strength, float)
        self._weights = weights
        self._settings = settings
        self._strength = settings.strength
        self._uses_residual = uses_residual
        first = next(iter(weights.values()))
        in_features = first.shape[1]
        norm_aware = uses_residual and settings.variant == "norm_aware"
        # X̂ itself: the stages after a correction measure on it, and unweighted its Gram matrix is Ĥ.
        self._seen = Accumulator(in_features, first.device)
        self._weighted = GramSum(in_features, first.device) if norm_aware else None
        # Without a residual part, T = (X - X̂) W', and one [in, in] cross product serves all linears.
        n_columns = first.shape[0] if uses_residual else in_features
        self._cross = torch.zeros(in_features, n_columns, device=first.device)

    def add(
        self, x: Tensor, x_hat: Tensor, residual: Tensor | None, residual_hat: Tensor | None
    ) -> None:
        """Add tokens: inputs [n, in_features], and for a residual part the residuals [n, hidden]."""
        x, x_hat = x.float(), x_hat.float()
        weighted = x_hat
        if self._uses_residual:
            assert residual is not None and residual_hat is not None
            (weight,) = self._weights.values()
            before, before_hat = residual.float(), residual_hat.float()
            if self._weighted is not None:
                output, output_hat = x @ weight.T, x_hat @ weight.T
                rms, rms_hat = _rms(before + output), _rms(before_hat + output_hat)
                gain = rms_hat / rms
                weighted, before = x_hat / rms_hat.square(), before * gain
                target = self._strength * (output * gain - output_hat)
                self._weighted.add(x_hat / rms_hat)
            else:
                target = (self._strength * (x - x_hat)) @ weight.T
            target += self._settings.residual_strength * (before - before_hat)
        else:
            target = self._strength * (x - x_hat)
        self._seen.add(x_hat)
        self._cross.addmm_(weighted.T, target)

    def statistics(self) -> RoleStatistics:
        """Return the statistics of X̂ so far."""
        return self._seen.result()

    def corrected(self) -> dict[str, Correction]:
        """Return the corrected weight of every linear.

        Raises:
            HessianError: when no damping makes Ĥ factorable.
        """
        seen = self._seen.result()
        hessian, cross = seen.gram, self._cross / seen.n_tokens
        if self._weighted is not None:
            hessian = self._weighted.result() / seen.n_tokens
        if not hessian.any():  # an input that is always zero: nothing that it meets can make up
            damping = self._settings.damping
            return {n: self._as(w, damping) for n, w in self._weights.items()}
        hessian, mean = hessian.double(), float(hessian.diagonal().double().mean())
        lower, damping = damped_cholesky(hessian, self._settings.damping)
        corrected = {}
        for name, weight in self._weights.items():
            wanted = cross if self._uses_residual else cross @ weight.T
            with one_thread(lower.device):
                moved = torch.cholesky_solve(wanted.double() / mean, lower).T
            corrected[name] = self._as((weight.double() + moved).float(), damping)
        return corrected

    def _as(self, weight: Tensor, damping: float) -> Correction:
        return Correction(weight=weight, damping=damping, strength=self._strength)


class CrossAccumulator:
    """Sums up Ĥ and D = (X - X̂)'X̂ over batches of tokens, for roundings that read both streams."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._seen = Accumulator(in_features, device)
        self._cross = torch.zeros(in_features, in_features, device=device)

    def add(self, x: Tensor, x_hat: Tensor, *residuals: Tensor | None) -> None:
        """Add tokens: inputs [n, in_features] of both streams; residuals are not read."""
        x_hat = x_hat.float()
        self._seen.add(x_hat)
        self._cross.addmm_((x.float() - x_hat).T, x_hat)

    def statistics(self) -> RoleStatistics:
        """Return the statistics of X̂ so far."""
        return self._seen.result()

    def cross(self) -> Tensor:
        """Return the mean D so far, [in_features, in_features]."""
        return self._cross / self._seen.n_tokens


def _rms(x: Tensor) -> Tensor:
    return (x.square().mean(dim=-1, keepdim=True) + _EPSILON).sqrt()
