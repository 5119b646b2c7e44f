"""Successive halving: spend draws on the candidates that still look good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence


def successive_halving(
    names: Sequence[str],
    rounds: Sequence[int],
    keep: float,
    loss: Callable[[str, int], float],
    always: str,
) -> list[list[str]]:
    """Return who took part in each round, best first after it.

    Args:
        names: the candidates.
        rounds: rising numbers of draws that a candidate has seen after each round.
        keep: share of a round's candidates that go on, at least one besides `always`.
        loss: of a candidate on a draw; draws are numbered from 0, and each pair is asked for once.
        always: the candidate that stays in, whatever its loss.
    """
    known: dict[tuple[str, int], float] = {}
    standing, history = list(names), []
    for n_draws in rounds:
        for draw in range(n_draws):
            for name in standing:
                if (name, draw) not in known:
                    known[name, draw] = loss(name, draw)
        standing = ranked(standing, n_draws, known)
        history.append(standing)
        rivals = [name for name in standing if name != always]
        n_kept = max(1, math.ceil(keep * len(rivals)))
        standing = [always, *rivals[:n_kept]]
    return history


def ranked(names: Sequence[str], n_draws: int, known: Mapping[tuple[str, int], float]) -> list[str]:
    """Return the candidates by their mean loss over the draws; ties keep their order, NaN comes last."""

    def mean(name: str) -> tuple[bool, float]:
        value = sum(known[name, draw] for draw in range(n_draws)) / n_draws
        return math.isnan(value), value

    return sorted(names, key=mean)
