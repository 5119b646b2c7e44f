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

`strength: search` takes, for every role of every block, the strength between 0 and 1 with the smallest
output error on every fourth calibration window, the correction fitted to the others; then it is fitted to
all of them at that strength.

Reference: QEP, arXiv 2504.09629; LoaQ, arXiv 2509.06297, as restated in arXiv 2512.01546. The weighting
of the norm-aware variant is our reading of "freezes both RMS factors". The search is ours: papers choose
strengths on a small model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from faqbench.config.experiment import CorrectionSection
from faqbench.quantization.activations import Accumulator, GramSum, RoleStatistics
from faqbench.quantization.reproducible import damped_cholesky, dot, one_thread

_EPSILON = 1e-6  # of the norms
_START, _WHOLE = 0.0, 1.0  # the strengths between which one is searched
_HELD_EVERY = 4


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
        settings: strengths and variant; `strength` is the role's own number here, or `search`.
        uses_residual: whether T has a residual part: LoaQ's o and down.
    """

    def __init__(
        self, weights: dict[str, Tensor], settings: CorrectionSection, *, uses_residual: bool
    ) -> None:
        assert not isinstance(settings.strength, dict)
        self._weights = weights
        self._settings = settings
        self._uses_residual = uses_residual
        strengths: tuple[float, ...] = (_START, _WHOLE) if uses_residual else (_WHOLE,)
        if settings.strength != "search":
            strengths = (settings.strength,)
        first, norm_aware = next(iter(weights.values())), settings.variant == "norm_aware"
        # Without a residual part, T = (X - X̂) W', and one [in, in] cross product serves all linears.
        shape = (first.shape[1], first.shape[0] if uses_residual else first.shape[1])
        make = partial(_Sums, shape, strengths, first.device, weighs=uses_residual and norm_aware)
        self._fitted, self._held = make(), make() if settings.strength == "search" else None

    def add(
        self,
        x: Tensor,
        x_hat: Tensor,
        residual: Tensor | None,
        residual_hat: Tensor | None,
        *,
        is_held: bool = False,
    ) -> None:
        """Add tokens: inputs [n, in_features], and for a residual part the residuals [n, hidden].

        Those that are held out choose the strength.
        """
        x, x_hat = x.float(), x_hat.float()
        sums = self._held if is_held else self._fitted
        assert sums is not None, "only a search holds tokens out"
        sums.seen.add(x_hat)
        drift, weighted, through, rest = x - x_hat, x_hat, None, None
        if self._uses_residual:
            assert residual is not None and residual_hat is not None
            (weight,) = self._weights.values()
            before, before_hat = residual.float(), residual_hat.float()
            if sums.weighted is None:
                through = weight.T
            else:
                output, output_hat = x @ weight.T, x_hat @ weight.T
                rms, rms_hat = _rms(before + output), _rms(before_hat + output_hat)
                gain = rms_hat / rms
                drift, before = output * gain - output_hat, before * gain
                weighted = x_hat / rms_hat.square()
                sums.weighted.add(x_hat / rms_hat)
            rest = self._settings.residual_strength * (before - before_hat)
        for strength, cross in sums.crosses.items():
            target = strength * drift if through is None else (strength * drift) @ through
            cross.addmm_(weighted.T, target if rest is None else target + rest)

    def statistics(self) -> RoleStatistics:
        """Return the statistics of X̂; nothing is added afterwards."""
        return self._everything.seen.result()

    def corrected(self) -> dict[str, Correction]:
        """Return the corrected weight of every linear.

        Raises:
            HessianError: when no damping makes Ĥ factorable.
        """
        strength, everything = self._settings.strength, self._everything
        if strength == "search":
            strength = self._searched()
        assert isinstance(strength, float)
        moved, damping = self._moved(everything, strength, is_last=True)
        return {
            name: Correction(
                weight=weight if name not in moved else (weight.double() + moved[name].T).float(),
                damping=damping,
                strength=strength,
            )
            for name, weight in self._weights.items()
        }

    @cached_property
    def _everything(self) -> _Sums:
        return self._fitted if self._held is None else self._fitted.plus(self._held)

    def _moved(
        self, sums: _Sums, strength: float, *, is_last: bool = False
    ) -> tuple[dict[str, Tensor], float]:
        """Return how far each linear's weight moves, float64 [in_features, out_features], and the damping.

        What the last call has read goes: of a wide linear Ĥ is as large as all that is left of the block.

        Nothing moves for an input that is always zero: nothing that it meets can make up.
        """
        hessian = sums.hessian()
        if not hessian.any():
            return {}, self._settings.damping
        mean = float(hessian.diagonal().double().mean())
        lower, damping = damped_cholesky(hessian, self._settings.damping, torch.float64)
        if is_last:
            sums.weighted = None
        del hessian
        moved = {}
        for name in self._weights:
            wanted = self._wanted(sums, name, strength)
            with one_thread(lower.device):
                moved[name] = torch.cholesky_solve(wanted.double() / mean, lower)
        return moved, damping

    def _wanted(self, sums: _Sums, name: str, strength: float) -> Tensor:
        """Return a linear's C [in_features, out_features]."""
        cross = sums.cross(strength)
        return cross if self._uses_residual else cross @ self._weights[name].T

    def _searched(self) -> float:
        """Return the strength with the smallest output error on the windows held out.

        M = W* - W is M_0 + s (M_1 - M_0) at strength s, so |X̂ M' - T|² with T at its whole is a parabola.
        """
        assert self._held is not None
        start, _ = self._moved(self._fitted, _START)
        whole, _ = self._moved(self._fitted, _WHOLE)
        hessian, slope, curvature = self._held.hessian().double(), 0.0, 0.0
        for name in whole:
            step = whole[name] - start[name]
            left = self._wanted(self._held, name, _WHOLE).double() - hessian @ start[name]
            slope += float(dot(step, left))
            curvature += float(dot(step, hessian @ step))
        return min(max(slope / curvature, _START), _WHOLE) if curvature > 0 else _START


class _Sums:
    """Ĥ and C over some tokens, C at each of some strengths.

    Attributes:
        seen: X̂ itself: the stages after a correction measure on it, and unweighted its Gram matrix is Ĥ.
        weighted: Ĥ of the norm-aware variant; None for the others.
        crosses: C times n by strength, each [in_features, in_features or out_features].
    """

    def __init__(
        self, shape: tuple[int, int], strengths: Sequence[float], device: torch.device, *, weighs: bool
    ) -> None:
        self.seen = Accumulator(shape[0], device)
        self.weighted = GramSum(shape[0], device) if weighs else None
        self.crosses = {s: torch.zeros(shape, device=device) for s in strengths}

    def hessian(self) -> Tensor:
        """Return Ĥ."""
        if self.weighted is not None:
            return self.weighted.mean(self.seen.n_tokens)
        return self.seen.result().gram

    def cross(self, strength: float) -> Tensor:
        """Return C at a strength: one that was summed up, or one between those that were, or and zero."""
        n_tokens = self.seen.n_tokens
        if strength in self.crosses:
            return self.crosses[strength] / n_tokens
        whole = self.crosses[_WHOLE] / n_tokens
        if _START not in self.crosses:
            return strength * whole
        return torch.lerp(self.crosses[_START] / n_tokens, whole, strength)

    def plus(self, other: _Sums) -> _Sums:
        """Return the sums over both's tokens."""
        result = copy.copy(self)
        result.seen = self.seen.plus(other.seen)
        if self.weighted is not None and other.weighted is not None:
            result.weighted = self.weighted.plus(other.weighted)
        result.crosses = {s: cross + other.crosses[s] for s, cross in self.crosses.items()}
        return result


def is_held_out(window: int, n_windows: int) -> bool:
    """Say whether a calibration window chooses a searched strength: every fourth, and at least one."""
    every = min(_HELD_EVERY, n_windows)
    return window % every == every - 1


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
        """Return the statistics of X̂; nothing is added afterwards."""
        return self._seen.result()

    def cross(self) -> Tensor:
        """Return the mean D so far, [in_features, in_features]."""
        return self._cross / self._seen.n_tokens


def _rms(x: Tensor) -> Tensor:
    return (x.square().mean(dim=-1, keepdim=True) + _EPSILON).sqrt()
