"""How far a calibration set is from a reference set, in tokens and in activations.

Legend: p, q token distributions of the two sets; a_b, r_b [in] mean|x| per channel of one role's input
in block b, on the calibration set and on the reference set.

    token_js = H((p + q) / 2) - (H(p) + H(q)) / 2               entropies H in bits

the Jensen-Shannon divergence of the token frequencies: 0 for equal ones, 1 for sets without a token in
common. It is that of two samples: two draws of one domain are not at 0 but at a floor that falls with
their sizes, which is why matched draws are measured too and never taken to be at 0.

    l_b = log(a_b / r_b)
    activation_shift = mean over blocks of sqrt(mean over channels of (l_b - mean(l_b))^2)

the spread over channels of the log ratio. A factor common to all channels drops out, as it does from the
scales of AWQ and FAQ, which are powers of a normalised by their own extremes; what remains is by how much
a typical channel's scale moves against the others: 0.1 is about 10 %, whatever the channel's own size, so
a few massive channels do not speak for all. Channels that are silent on either set are left out, and so
is a role of which no channel remains.

Reference: Lin 1991 (Jensen-Shannon divergence). The activation shift is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Means = Mapping[str, Sequence[Tensor]]


def token_divergence(tokens: Tensor, reference: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two sets' token frequencies, in bits, in [0, 1].

    Args:
        tokens: token ids of any shape.
        reference: the same of the reference set.
    """
    size = int(max(tokens.max(), reference.max())) + 1
    p, q = (np.bincount(t.flatten().numpy(), minlength=size) for t in (tokens, reference))
    p, q = p / p.sum(), q / q.sum()
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return min(1.0, max(0.0, divergence))


def activation_shift(means: Means, reference: Means) -> dict[str, float]:
    """Return the shift of each role's channels against the reference set, silent roles left out.

    Args:
        means: by role, mean|x| [in_features] of every block in turn.
        reference: the same of the reference set.
    """
    shifts = {}
    for role, blocks in means.items():
        spreads = [_spread(a, r) for a, r in zip(blocks, reference[role], strict=True)]
        known = [spread for spread in spreads if not math.isnan(spread)]
        if known:
            shifts[role] = sum(known) / len(known)
    return shifts


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _spread(means: Tensor, reference: Tensor) -> float:
    """Return the spread over channels of the log ratio; NaN when no channel is active on both sets."""
    a, r = means.double().numpy(), reference.double().numpy()
    active = (a > 0) & (r > 0)
    return float(np.log(a[active] / r[active]).std()) if active.any() else math.nan
