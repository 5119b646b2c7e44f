"""Upload runs to W&B, or rebuild them there, from runs/ alone: sync [RUN] mode=… runs=…."""

from __future__ import annotations

from pathlib import Path

from faqbench.cli.arguments import read_arguments
from faqbench.cli.console import console_progress
from faqbench.cli.show import find_record
from faqbench.config import UserError
from faqbench.config.experiment import TrackingSection
from faqbench.records import find_runs, read_run
from faqbench.tracking import tracker

_KEYS = {
    "runs": "the folder of runs",
    "mode": "auto, online or offline",
    "project": "the W&B project",
    "entity": "the W&B entity",
}
_MODES = ("auto", "online", "offline")


def run(arguments: list[str]) -> int:
    """Show runs in W&B; twice is the same as once, since a run's id there is made from its record."""
    words, values = read_arguments("sync", arguments, _KEYS, n_words=1)
    if values.get("mode", "auto") not in _MODES:
        raise UserError(f"mode={values['mode']} is not allowed; it is one of {', '.join(_MODES)}.")
    runs = Path(values.get("runs", "runs"))
    records = [find_record(runs, words[0])] if words else find_runs(runs)[0]
    if not records:
        raise UserError(f"There are no runs in {runs} to upload.")
    with console_progress().stage("sync", len(records)) as advance:
        for record in records:
            section = {
                "name": "wandb",
                "project": "faqbench",
                "entity": None,
                "group": None,
                "tags": (),
            }
            section |= {
                k: v for k, v in record.config["tracking"].items() if k in {"project", "group"}
            }
            section |= {"mode": "auto"} | {k: v for k, v in values.items() if k != "runs"}
            tracker(TrackingSection.model_validate(section), runs).log(
                read_run(runs / record.run_id)
            )
            advance()
    return 0
