"""A W&B report by code: the answer in words, and panels over the runs of a sweep.

It needs an account and the extra `wandb-report`. The words are those of `faqbench report`; the panels
read the names that `view` gives: `eval/<task>/<metric>`, `blocks/<curve>`, `plots/<name>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from faqbench.config import UserError
from faqbench.report import Answer
from faqbench.tracking.wandb import has_credentials

_LONGEST_TITLE = 128
_PLOTS = ("plots/differences", "plots/depth", "plots/linears", "plots/exponents")


def publish(answer: Answer, *, project: str, entity: str | None, group: str, draft: bool) -> str:
    """Save a W&B report and return its address.

    Args:
        answer: what it says.
        project: the W&B project of the runs.
        entity: its owner; None is the account's default.
        group: the sweep whose runs the panels show.
        draft: whether to save it as a draft.

    Raises:
        UserError: without an account, or without the extra.
    """
    if not has_credentials():
        raise UserError(
            "wandb-report needs a W&B account: set WANDB_API_KEY or run `wandb login`. Without one, "
            "`faqbench report` makes the same as a page."
        )
    api = _interface()
    owner = entity or _default_entity()
    report = build(api, answer, project=project, entity=owner, group=group)
    report.save(draft=draft)
    return str(report.url)


def build(api: Any, answer: Answer, *, project: str, entity: str, group: str) -> Any:
    """Return the report as `wandb_workspaces.reports.v2` describes it, unsaved."""
    runs = api.Runset(entity=entity, project=project, name=group, filters=f"Group == '{_plain(group)}'")
    return api.Report(
        project=project,
        entity=entity,
        title=answer.title[:_LONGEST_TITLE],
        description=f"{answer.n_runs} runs; made by faqbench from their records.",
        width="fluid",
        blocks=[
            api.MarkdownBlock(text=answer.text),
            api.H2(text="Results"),
            api.PanelGrid(runsets=[runs], panels=_result_panels(api, answer.metrics)),
            api.H2(text="Where errors come from"),
            api.PanelGrid(runsets=[runs], panels=_error_panels(api)),
            api.H2(text="Cost"),
            api.PanelGrid(runsets=[runs], panels=_cost_panels(api)),
            api.H2(text="Settings"),
            api.PanelGrid(runsets=[runs], panels=[api.RunComparer(diff_only="split")]),
        ],
    )


def _result_panels(api: Any, metrics: Sequence[tuple[str, str, bool]]) -> list[Any]:
    panels = []
    for task, metric, higher in metrics:
        name = f"eval/{task}/{metric}"
        title = f"{task}, {metric}, {'higher' if higher else 'lower'} is better"
        panels.append(api.BarPlot(title=title, metrics=[api.SummaryMetric(name)]))
        panels.append(
            api.ScatterPlot(
                title=f"{title}, by size", x=api.SummaryMetric("bits_per_weight"), y=api.SummaryMetric(name)
            )
        )
    return panels


def _error_panels(api: Any) -> list[Any]:
    curves = ("blocks/alone_error", "blocks/added_up_error", "blocks/relative_error")
    lines = [
        api.LinePlot(title=curve.partition("/")[2], x="block", y=[curve], log_y=True) for curve in curves
    ]
    return [*lines, api.MediaBrowser(media_keys=list(_PLOTS))]


def _cost_panels(api: Any) -> list[Any]:
    memory = api.LinePlot(title="memory", x="live/seconds", y=["live/memory_bytes"])
    names = ("seconds", "peak_memory_bytes")
    return [*(api.BarPlot(title=n, metrics=[api.SummaryMetric(n)]) for n in names), memory]


def _plain(group: str) -> str:
    return group.replace("'", "").replace("\\", "")


def _interface() -> Any:
    try:
        import wandb_workspaces.reports.v2 as api
    except ImportError as error:
        raise UserError("wandb-report needs an extra: pip install 'faqbench[wandb-report]'.") from error
    return api


def _default_entity() -> str:
    import wandb

    return str(wandb.Api().default_entity)
