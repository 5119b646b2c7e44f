"""What a search leaves behind: the table of its trials, its evidence, and a dated preset.

<paths.presearch>/<model>-<bits and grid>-<search>/
    trials.csv                one row per trial
    evidence.json             the finalists, the rounds, and what the search was
    quant/<preset>.yaml       the choice, for `--config-dir` or to be kept in conf/quant/
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from datetime import date
from pathlib import Path

import yaml

from faqbench.config.identity import calibration_identity, grid_slug
from faqbench.files import atomic_write, explain_os_error
from faqbench.presearch.candidates import Evidence, verdict
from faqbench.presearch.search import SearchResult
from faqbench.statistics import exp, percent_of_log

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
    stages = {
        "scale": quant.scale,
        "clip": quant.clip,
        "correct": quant.correct,
        "round": quant.round,
    }
    body = {"defaults": ["_stages", "_self_"], "name": preset_name(result, day), **stages}
    text = yaml.safe_dump(body | {"preview": preview}, sort_keys=False, default_flow_style=None)
    return "\n".join(lines) + "\n" + text


def _row(evidence: Evidence) -> str:
    ratios = [percent_of_log(x) for x in (evidence.log_ratio, evidence.low, evidence.high)]
    interval = f"{ratios[0]:+.2f} % ({ratios[1]:+.2f} to {ratios[2]:+.2f})"
    return f"{evidence.perplexity:10.3f}   {interval:32} {evidence.output_error:12.5f}   {evidence.name}"
