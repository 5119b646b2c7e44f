"""How the numbers of a panel were measured, in the words that a reader needs to judge or repeat them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.panels import Panel

STATISTICS = (
    "Each value stands with its standard error over windows (perplexity, delta method) or items "
    "(accuracy). Differences are paired: per window of the same tokens for perplexity, with a "
    "circular block bootstrap over windows; per item for accuracy, with an exact McNemar test and "
    "a paired bootstrap. With several calibration draws the error is split into the draws', the "
    "items' and a residual part. p-values are corrected by Holm's method over each table; "
    "intervals are 95 % for each comparison by itself. What is not significant is called not "
    "decidable, unless two one-sided tests show it to be within the margin that was stated beforehand. "
    "Flips are the items that one run gets right and the other wrong."
)


def how_measured(panel: Panel) -> Iterator[tuple[str, str]]:
    """Yield (term, description) of what a reader needs to judge or repeat the numbers."""
    runs = [run for row in panel.rows for run in row.runs]
    notes = _values(runs, "model.notes")
    yield "Model", " ".join([panel.model, *(f"({n})" for n in _values(runs, "model.source"))])
    if notes:
        yield "About the model", " ".join(notes)
    for column in panel.of_kind("perplexity"):
        windows = _values(runs, "evaluation.n_windows")
        first = f", at most {windows[0]} windows" if len(windows) == 1 else ""
        yield column.label, f"perplexity over {column.n:,} scored tokens{first}"
    tasks = [f"{column.label} ({column.n:,} items)" for column in panel.of_kind("acc")]
    if tasks:
        shots = "/".join(_values(runs, "evaluation.num_fewshot")) or "unknown"
        bos = "/".join(_values(runs, "evaluation.add_bos")) or "unknown"
        yield "Tasks", f"{', '.join(tasks)}; few-shot examples: {shots}; BOS added: {bos}"
    for note in facts.truncation_notes(runs):
        yield "Truncated", note
    yield from _grid([run for run in runs if not facts.is_baseline(run)])
    yield from _calibration([run for run in runs if facts.is_calibrated(run)])
    yield "Arithmetic", ", ".join(_values(runs, "dtype") + _values(runs, "device")) or "unknown"
    yield from _environment(runs)
    yield "Statistics", STATISTICS


def _grid(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    if runs:
        groups = [("per row" if g == "-1" else g) for g in _values(runs, "quant.group_size")]
        kinds = dict.fromkeys(facts.grid_kind(run) for run in runs)
        yield "Grid", f"{', '.join(kinds)}, group size {', '.join(groups)}"


def _calibration(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    if not runs:
        return
    windows = _values(runs, "calibration.n_samples"), _values(runs, "calibration.seq_len")
    domains = formatting.listing(_values(runs, "calibration.domain")) or "unknown text"
    scenarios = [s for s in _values(runs, "scenario") if s != "matched"]
    seeds = list(dict.fromkeys(facts.seed(run) for run in runs))
    text = f"{' or '.join(windows[0])} windows of {' or '.join(windows[1])} tokens of {domains}"
    text += f", scenarios {formatting.listing(scenarios)}" if scenarios else ""
    yield "Calibration", f"{text}; seeds {', '.join(seeds)}. RTN and full precision read none."


def _environment(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    flat = facts.flatten(runs[0].environment) if runs else {}
    if flat:
        same = all(facts.flatten(run.environment) == flat for run in runs)
        text = ", ".join(f"{key} {value}" for key, value in flat.items())
        yield "Environment", text if same else f"{text}; it differs between runs, see each run"


def _values(runs: Iterable[RunRecord], key: str) -> list[str]:
    found = (facts.config_value(run.config, key) for run in runs)
    return [value for value in dict.fromkeys(found) if value is not None]
