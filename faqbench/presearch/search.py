"""The search itself: candidates through the rounds of successive halving, then the choice.

Successive halving spends draws on the candidates that still look good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from faqbench import formatting
from faqbench.config import Experiment, UserError
from faqbench.presearch.candidates import AWQ, Candidate, Evidence, candidates, weigh
from faqbench.presearch.trials import Bench, Trial
from faqbench.stages import Progress, StageCache
from faqbench.statistics import exp


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """What a search found.

    Attributes:
        experiment: what was searched for.
        candidates: all of them, by name, AWQ included.
        history: who took part in each round, best first after it.
        trials: by (candidate, draw).
        evidence: of those that saw all draws: the chosen one first, AWQ last.
        selection: the selection text in words.
    """

    experiment: Experiment
    candidates: Mapping[str, Candidate]
    history: tuple[tuple[str, ...], ...]
    trials: Mapping[tuple[str, int], Trial]
    evidence: tuple[Evidence, ...]
    selection: str

    @property
    def chosen(self) -> Candidate:
        """The candidate that the evidence speaks for."""
        return self.candidates[self.evidence[0].name]


def search(experiment: Experiment, *, cache: StageCache, progress: Progress) -> SearchResult:
    """Choose FAQ's options for a model.

    Args:
        experiment: the model, the method, bits, calibration and `presearch`; what it evaluates is not
            read.
        cache: keeps every trial, so that a search can be stopped and taken up again.
        progress: told of every trial.

    Raises:
        UserError: when the method does not preview, there is no candidate besides AWQ, or for anything
            that the user can mend.
    """
    if experiment.quant.scale != "faq":
        raise UserError(
            f"presearch chooses the preview of FAQ, and quant={experiment.quant.name} has none "
            f"(quant.scale={experiment.quant.scale}); use quant=faq or quant=qep-faq."
        )
    if experiment.quant.rotate != "none":
        raise UserError(
            "presearch tries previews on the model as it was loaded, and quant.rotate="
            f"{experiment.quant.rotate} quantizes another one; use quant.rotate=none."
        )
    known = {candidate.name: candidate for candidate in candidates(experiment)}
    if len(known) == 1:
        raise UserError("presearch.grids has no candidate besides AWQ: raise window, lower gamma.")
    settings = experiment.presearch
    bench = Bench(experiment, cache, progress)
    trials: dict[tuple[str, int], Trial] = {}

    def loss(name: str, draw: int) -> float:
        trial = trials[name, draw] = bench.trial(known[name], draw)
        end = "known" if trial.cached else formatting.seconds(trial.seconds)
        progress.note(
            f"{name}, draw {draw}: perplexity {exp(trial.loss):.3f}, output error "
            f"{trial.output_error:.5f} ({end})"
        )
        return trial.loss

    history = successive_halving(list(known), settings.rounds, settings.keep, loss, AWQ)
    n_draws = settings.rounds[-1]
    windows = {n: np.stack([trials[n, d].windows for d in range(n_draws)]) for n in history[-1]}
    errors = {n: [trials[n, d].output_error for d in range(n_draws)] for n in history[-1]}
    return SearchResult(
        experiment=experiment,
        candidates=known,
        history=tuple(map(tuple, history)),
        trials=trials,
        evidence=tuple(weigh(windows, errors)),
        selection=f"{len(bench.selection.tokens)} windows of {settings_text(bench)}",
    )


def settings_text(bench: Bench) -> str:
    """Return the selection text in words."""
    tokens = bench.selection.tokens.shape[1]
    return f"{tokens} tokens from the selection part of {bench.selection.domain}"


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
