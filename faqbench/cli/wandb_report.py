"""Make a W&B report by code, with the answer in words and panels over a sweep's runs: name=… project=…."""

from __future__ import annotations

from faqbench.cli.arguments import Flag, KeysOfSelection, read_arguments
from faqbench.config import UserError
from faqbench.report import ReportRequest, answer
from faqbench.tracking.wandb import publish


class WandbReportKeys(KeysOfSelection):
    """What the report is about, and where it goes.

    Attributes:
        name: the sweep, whose W&B group the panels show.
        baseline: the method or run that others are compared with.
        title: the report's title.
        project: the W&B project.
        entity: the W&B entity.
        draft: whether to save a draft.
    """

    name: str | None = None
    baseline: str | None = None
    title: str | None = None
    project: str = "faqbench"
    entity: str | None = None
    draft: Flag = False


def run(arguments: list[str]) -> int:
    """Save the report in W&B and print its address."""
    _, keys = read_arguments("wandb-report", arguments, WandbReportKeys)
    if keys.name is None:
        raise UserError("wandb-report needs name=SWEEP, the sweep that it is about.")
    said = answer(
        ReportRequest(
            runs=keys.runs,
            reports=keys.runs,
            name=keys.name,
            select=keys.select,
            baseline=keys.baseline,
            title=keys.title,
        )
    )
    if not said.n_runs:
        raise UserError(f"No run of '{keys.name}' in {keys.runs} has finished.")
    address = publish(said, project=keys.project, entity=keys.entity, group=keys.name, draft=keys.draft)
    print(f"W&B report: {address}")
    return 0
