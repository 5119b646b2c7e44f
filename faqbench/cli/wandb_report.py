"""Make a W&B report by code, with the answer in words and panels over a sweep's runs: name=… project=…."""

from __future__ import annotations

import shlex
from pathlib import Path

from faqbench.cli.arguments import read_arguments
from faqbench.config import UserError
from faqbench.report import ReportRequest, answer
from faqbench.tracking.wandb_report import publish

_KEYS = {
    "name": "the sweep, whose W&B group the panels show",
    "select": "patterns on run ids and key=value filters, separated by spaces",
    "baseline": "the method or run that others are compared with",
    "title": "the report's title",
    "project": "the W&B project",
    "entity": "the W&B entity",
    "draft": "true saves a draft",
    "runs": "the folder of runs",
}


def run(arguments: list[str]) -> int:
    """Save the report in W&B and print its address."""
    _, values = read_arguments("wandb-report", arguments, _KEYS)
    if "name" not in values:
        raise UserError("wandb-report needs name=SWEEP, the sweep that it is about.")
    runs = Path(values.get("runs", "runs"))
    said = answer(
        ReportRequest(
            runs=runs,
            reports=runs,
            name=values["name"],
            select=tuple(shlex.split(values.get("select", ""))),
            baseline=values.get("baseline"),
            title=values.get("title"),
        )
    )
    if not said.n_runs:
        raise UserError(f"No run of '{values['name']}' in {runs} has finished.")
    address = publish(
        said,
        project=values.get("project", "faqbench"),
        entity=values.get("entity"),
        group=values["name"],
        draft=values.get("draft", "false") == "true",
    )
    print(f"W&B report: {address}")
    return 0
