"""The search itself: candidates through the rounds of successive halving, the choice and what it leaves.

Successive halving spends draws on the candidates that still look good.

<paths.presearch>/<model>-<bits and grid>-<search>/
    trials.csv                one row per trial
    evidence.json             the finalists, the rounds, and what the search was
    quant/<preset>.yaml       the choice, for `--config-dir` or to be kept in conf/quant/
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import yaml

from faqbench import formatting
from faqbench.config import Experiment, UserError
from faqbench.config.identity import calibration_identity, grid_slug
from faqbench.files import atomic_write, explain_os_error
from faqbench.presearch.trials import (
    AWQ,
    Bench,
    Candidate,
    Trial,
    TrialEvidence,
    candidates,
    verdict,
    weigh,
)
from faqbench.stages import Progress, StageCache
from faqbench.statistics import exp, percent_of_log


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
    evidence: tuple[TrialEvidence, ...]
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
    by_name = {candidate.name: candidate for candidate in candidates(experiment)}
    if len(by_name) == 1:
        raise UserError("presearch.grids has no candidate besides AWQ: raise window, lower gamma.")
    settings = experiment.presearch
    bench = Bench(experiment, cache, progress)
    trials: dict[tuple[str, int], Trial] = {}

    def loss(name: str, draw: int) -> float:
        trial = trials[name, draw] = bench.trial(by_name[name], draw)
        end = "known" if trial.cached else formatting.seconds(trial.seconds)
        progress.note(
            f"{name}, draw {draw}: perplexity {exp(trial.loss):.3f}, output error "
            f"{trial.output_error:.5f} ({end})"
        )
        return trial.loss

    history = successive_halving(list(by_name), settings.rounds, settings.keep, loss, AWQ)
    n_draws = settings.rounds[-1]
    windows = {n: np.stack([trials[n, d].windows for d in range(n_draws)]) for n in history[-1]}
    errors = {n: [trials[n, d].output_error for d in range(n_draws)] for n in history[-1]}
    return SearchResult(
        experiment=experiment,
        candidates=by_name,
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
    names: Sequence[str], rounds: Sequence[int], keep: float, loss: Callable[[str, int], float], always: str
) -> list[list[str]]:
    """Return who took part in each round, best first after it.

    Args:
        names: the candidates.
        rounds: rising numbers of draws that a candidate has seen after each round.
        keep: share of a round's candidates that go on, at least one besides `always`.
        loss: of a candidate on a draw; draws are numbered from 0, and each pair is asked for once.
        always: the candidate that stays in, whatever its loss.
    """
    scores: dict[tuple[str, int], float] = {}
    standing, history = list(names), []
    for n_draws in rounds:
        for draw in range(n_draws):
            for name in standing:
                if (name, draw) not in scores:
                    scores[name, draw] = loss(name, draw)
        standing = ranked(standing, n_draws, scores)
        history.append(standing)
        rivals = [name for name in standing if name != always]
        n_kept = max(1, math.ceil(keep * len(rivals)))
        standing = [always, *rivals[:n_kept]]
    return history


def ranked(names: Sequence[str], n_draws: int, scores: Mapping[tuple[str, int], float]) -> list[str]:
    """Return the candidates by their mean loss over the draws; ties keep their order, NaN comes last."""

    def mean(name: str) -> tuple[bool, float]:
        value = sum(scores[name, draw] for draw in range(n_draws)) / n_draws
        return math.isnan(value), value

    return sorted(names, key=mean)


_OPTIONS = ("window", "gamma", "roles", "source", "stream", "weights", "norm", "fuse")


def preset_name(result: SearchResult, day: date) -> str:
    """Return the preset's name: method, model and day."""
    experiment = result.experiment
    return f"{experiment.quant.name}-{experiment.model.name}-{day.isoformat()}"


def write_search(result: SearchResult, day: date) -> Path:
    """Write a search's folder and return the preset's path.

    Args:
        result: of the search.
        day: that the preset is dated with.

    Raises:
        UserError: when the folder cannot be written.
    """
    experiment = result.experiment
    slug = "-".join([experiment.model.name, *grid_slug(experiment), experiment.presearch.name])
    folder = experiment.paths.presearch / slug
    preset = folder / "quant" / f"{preset_name(result, day)}.yaml"
    remedy = "free some space, or set paths.presearch to a folder that can be written"
    with explain_os_error("write the presearch", folder, remedy):
        atomic_write(folder / "trials.csv", trials_csv(result).encode())
        atomic_write(folder / "evidence.json", evidence_json(result, day).encode())
        atomic_write(preset, preset_yaml(result, day).encode())
    return preset


def trials_csv(result: SearchResult) -> str:
    """Return the table of all trials: a candidate's options, the draw, and what it gave."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    roles = list(next(iter(result.trials.values())).error_of)
    head = ["candidate", *_OPTIONS, "draw", "seed", "perplexity", "nll", "output_error"]
    writer.writerow([*head, *(f"output_error_{role}" for role in roles), "seconds"])
    first_seed = result.experiment.calibration.seed
    for (name, draw), trial in result.trials.items():
        preview = result.candidates[name].preview
        options = [getattr(preview, option) for option in _OPTIONS]
        numbers = [exp(trial.loss), trial.loss, trial.output_error]
        by_role = [trial.error_of[role] for role in roles]
        row = [name, *options, draw, first_seed + draw, *numbers, *by_role]
        writer.writerow([*row, round(trial.seconds, 1)])
    return out.getvalue()


def evidence_json(result: SearchResult, day: date) -> str:
    """Return what was searched, how the rounds went, and the finalists."""
    experiment = result.experiment
    content = {
        "date": day.isoformat(),
        "model": experiment.model.name,
        "quant": experiment.quant.name,
        "bits": experiment.quant.bits,
        "group_size": experiment.quant.group_size,
        "calibration": calibration_identity(experiment),
        "selection": result.selection,
        "presearch": experiment.presearch.model_dump(mode="json"),
        "rounds": [list(names) for names in result.history],
        "chosen": result.evidence[0].name,
        "verdict": verdict(result.evidence[0]),
        "finalists": [asdict(evidence) for evidence in result.evidence],
    }
    return json.dumps(content, indent=1) + "\n"


def preset_yaml(result: SearchResult, day: date) -> str:
    """Return the choice as a preset of `quant`, its evidence as comments."""
    experiment, quant = result.experiment, result.experiment.quant
    grid = f"{quant.bits} bits, group {quant.group_size}"
    name = experiment.presearch.name
    n_draws = experiment.presearch.rounds[-1]
    n_tied = sum(evidence.tied for evidence in result.evidence)
    title = f"FAQ as `presearch={name}` chose it on {day.isoformat()} for {experiment.model.name}, {grid}"
    lines = [
        f"# {title}.",
        f"# Judged on {result.selection}, {n_draws} calibration draws:",
        f"# {verdict(result.evidence[0])}.",
        "#",
        "#   perplexity   against AWQ, 95 % interval       output error   candidate",
        *(f"#   {_row(e)}" for e in result.evidence),
        "#",
        f"# The first is chosen: the least output error among the {n_tied} that one standard error cannot "
        "tell from the best.",
    ]
    preview = {option: getattr(result.chosen.preview, option) for option in _OPTIONS}
    stages = {"scale": quant.scale, "clip": quant.clip, "correct": quant.correct, "round": quant.round}
    body = {"defaults": ["_stages", "_self_"], "name": preset_name(result, day), **stages}
    text = yaml.safe_dump(body | {"preview": preview}, sort_keys=False, default_flow_style=None)
    return "\n".join(lines) + "\n" + text


def _row(evidence: TrialEvidence) -> str:
    ratios = [percent_of_log(x) for x in (evidence.log_ratio, evidence.low, evidence.high)]
    interval = f"{ratios[0]:+.2f} % ({ratios[1]:+.2f} to {ratios[2]:+.2f})"
    return f"{evidence.perplexity:10.3f}   {interval:32} {evidence.output_error:12.5f}   {evidence.name}"
