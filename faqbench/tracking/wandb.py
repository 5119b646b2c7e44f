"""Weights & Biases: one W&B run per cell, live while it runs, rebuilt from its record at any time.

    run        id from the run id, `resume="allow"`; group = sweep; job_type baseline, cell or report
    config     the configuration, nested, and the record's fingerprints
    summary    as in `view`
    history    live/seconds, live/memory_bytes, live/done_frac, live/activity over `live/seconds`;
               blocks/<curve> over `block`
    tables     tables/metrics, tables/linears, tables/comparison
    images     plots/<name>
    artifacts  results-<id> with the record and its tables; online also the baseline's as an input

Steps are numbered by what they hold: samples first, then blocks, then tables. So showing a run again
adds nothing to its history. A failed cell's run is finished with exit code 1. Mode `auto` is online
where credentials are configured and offline elsewhere; offline runs lie in `<runs>/wandb/` and
`wandb sync` uploads them later, under the same id. A server that does not answer makes a run offline.

Whether W&B has credentials here is found without a network call, a prompt or W&B itself. It looks for a
key in WANDB_API_KEY, then in the netrc file; WANDB_IDENTITY_TOKEN_FILE and a settings file can take their
place. No key is ever read into a variable that could be logged.

`publish` makes a W&B report: the answer in words, and panels over the runs of a sweep. It needs an
account and the extra `wandb-report`. The words are those of `faqbench report`; the panels read the names
that `view` gives: `eval/<task>/<metric>`, `blocks/<curve>`, `plots/<name>`.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import logging
import netrc
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pandas as pd
from filelock import FileLock

from faqbench.config import UserError
from faqbench.config.experiment import TrackingSection
from faqbench.report import Answer
from faqbench.tracking.samples import ProgressSample
from faqbench.tracking.view import RunHead, RunView

_log = logging.getLogger("faqbench")
Mode = Literal["auto", "online", "offline", "disabled"]
_LONGEST_ID = 64
_PROBE_SECONDS = 4.0
_INIT_SECONDS = 20.0
_FINISH_SECONDS = 120.0
_LOCK_SECONDS = 20.0


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """Return the mode for `auto`: W&B's own WANDB_MODE decides first, then the credentials.

    Online without credentials becomes offline, since W&B would stop and ask for them.
    """
    chosen = os.environ.get("WANDB_MODE") if mode == "auto" else mode
    match chosen:
        case "offline" | "disabled":
            return chosen
        case _:
            return "online" if has_credentials() else "offline"


def stable_id(run_id: str) -> str:
    """Return a W&B id for a run id: the same, or a legal name with its hash."""
    legal = re.sub(r"[^A-Za-z0-9_-]", "-", run_id)
    if legal == run_id and len(legal) <= _LONGEST_ID:
        return legal
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:10]
    return f"{legal[: _LONGEST_ID - 11]}-{digest}"


def open_run(head: RunHead, section: TrackingSection, runs: Path) -> WandbRun | None:
    """See `Service.open_run`."""
    mode = resolve_mode(section.mode)
    if mode == "disabled":
        return None
    if mode != "online" and section.mode == "online":
        _log.warning("W&B has no credentials here: run %s is offline", head.run_id)
    return WandbRun(head, section, runs, mode)


class WandbRun:
    """A W&B run, from its beginning to its end."""

    def __init__(
        self, head: RunHead, section: TrackingSection, runs: Path, mode: Literal["online", "offline"]
    ) -> None:
        import wandb

        self._wandb: Any = wandb
        self._n_samples = 0
        self._name = head.run_id
        self._offline = mode == "offline"
        self._open = ExitStack()
        session = wandb.setup(settings=wandb.Settings(silent=True, quiet=True))
        if mode == "online" and not _answers(session.settings.base_url):
            _log.warning("W&B does not answer: run %s is offline, for `wandb sync`", head.run_id)
            self._offline = True
        try:
            self._hold(runs)
            self.run: Any = self._start(head, section, runs)
        except BaseException:
            self._open.close()
            raise

    def _hold(self, runs: Path) -> None:
        """Keep other processes from showing the same run, and W&B from staging in the home folder."""
        name = stable_id(self._name)
        folder = runs / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock", timeout=_LOCK_SECONDS)
        self._open.enter_context(lock)
        self._open.callback(Path(lock.lock_file).unlink, missing_ok=True)
        if self._offline:
            _remove_offline_copies(runs, name)
        if "WANDB_DATA_DIR" not in os.environ:
            # Only a variable can say so; it is taken back when the run is closed.
            os.environ["WANDB_DATA_DIR"] = str((folder / "staging" / name).absolute())
            self._open.callback(os.environ.pop, "WANDB_DATA_DIR", None)

    def _start(self, head: RunHead, section: TrackingSection, runs: Path) -> Any:
        """Open the W&B run of a cell, new or again."""
        run = self._wandb.init(
            entity=section.entity,
            project=section.project,
            dir=str(runs),
            id=stable_id(head.run_id),
            name=head.run_id,
            group=head.group,
            job_type=head.job_type,
            tags=list(head.tags),
            config=dict(head.config),
            mode="offline" if self._offline else "online",
            resume="allow",
            reinit="create_new",
            save_code=False,
            settings=_settings(self._wandb),
        )
        for axis, metrics in (("live/seconds", "live/*"), ("block", "blocks/*")):
            # A curve's last point is no result, so neither is in the summary.
            run.define_metric(axis, summary="none")
            run.define_metric(metrics, step_metric=axis, summary="none")
        return run

    def sample(self, number: int, sample: ProgressSample) -> None:
        """See `OpenRun.sample`."""
        self._n_samples = number + 1
        done = sample.done / sample.total if sample.total else 0.0
        values = {
            "live/seconds": sample.seconds,
            "live/activity": sample.activity,
            "live/done_frac": done,
            "live/memory_bytes": sample.memory_bytes,
            "live/device_bytes": sample.device_bytes,
        }
        self.run.log({k: v for k, v in values.items() if v is not None}, step=number)

    def finish(self, view: RunView) -> None:
        """See `OpenRun.finish`."""
        record = view.record
        if record.status != "finished":
            self.run.tags = (*(self.run.tags or ()), "failed")
        self.run.config.update({"fingerprints": record.fingerprints}, allow_val_change=True)
        step = self._log_curves(view, self._n_samples)
        shown = {f"tables/{n}": _table(self._wandb, t) for n, t in view.tables.items()}
        with tempfile.TemporaryDirectory() as scratch:
            for image in view.images:
                path = Path(scratch) / f"{image.name}.png"
                path.write_bytes(image.png)
                shown[f"plots/{image.name}"] = self._wandb.Image(str(path), caption=image.caption)
            if shown:
                self.run.log(shown, step=step)
        self._log_artifacts(view)
        self.run.summary.update(dict(view.summary))
        self.close(0 if record.status == "finished" else 1)

    def points(self, points: Sequence[Mapping[str, float]]) -> None:
        """See `OpenRun.points`."""
        for step, point in enumerate(points):
            self.run.log(dict(point), step=step)
        self.close(0)

    def report(self, folder: Path) -> None:
        """See `OpenRun.report`."""
        wandb = self._wandb
        shown = {f"plots/{p.stem}": wandb.Image(str(p)) for p in sorted(folder.glob("figures/*.png"))}
        for path in sorted(folder.glob("tables/*.parquet")):
            shown[f"tables/{path.stem}"] = _table(wandb, pd.read_parquet(path))
        shown["page"] = wandb.Html(str(folder / "index.html"), inject=False)
        self.run.log(shown, step=0)
        artifact = wandb.Artifact(self._name, type="report")
        artifact.add_dir(str(folder))
        self.run.log_artifact(artifact)
        self.close(0)

    def abandon(self) -> None:
        """See `OpenRun.abandon`."""
        self.close(1)

    def close(self, exit_code: int) -> None:
        """End the run; a second call does nothing."""
        run, self.run = self.run, None
        try:
            if run is not None:
                run.finish(exit_code=exit_code)
        finally:
            self._open.close()

    def _log_curves(self, view: RunView, first: int) -> int:
        """Log all curves, a block a step, and return the step after them."""
        blocks = sorted({block for curve in view.curves.values() for block, _ in curve})
        curves = {name: dict(curve) for name, curve in view.curves.items()}
        for i, block in enumerate(blocks):
            values = {f"blocks/{n}": curve[block] for n, curve in curves.items() if block in curve}
            self.run.log({"block": block, **values}, step=first + i)
        return first + len(blocks)

    def _log_artifacts(self, view: RunView) -> None:
        """Keep the record's files, and name the baseline's as what this run was compared with.

        W&B takes an input online alone; an offline run names its baseline in the summary.
        """
        if view.files:
            self.run.log_artifact(self._artifact(view.record.run_id, view.files))
        if not self._offline and view.baseline is not None and view.baseline[1]:
            self.run.use_artifact(self._artifact(*view.baseline))

    def _artifact(self, run_id: str, files: Mapping[str, Path]) -> Any:
        artifact = self._wandb.Artifact(f"results-{stable_id(run_id)}", type="results")
        for name, path in files.items():
            artifact.add_file(str(path), name=name)
        return artifact


def _settings(wandb: Any) -> Any:
    """Return settings under which W&B says nothing and takes nothing but what it is given."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=_INIT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )


def _table(wandb: Any, frame: pd.DataFrame) -> Any:
    """Return a W&B table whose columns have the frame's types."""
    kinds = {"b": bool, "i": int, "u": int, "f": float}
    types = [kinds.get(frame[column].dtype.kind, str) for column in frame.columns]
    rows = [
        [None if pd.isna(value) else kind(value) for kind, value in zip(types, row, strict=True)]
        for row in frame.itertuples(index=False, name=None)
    ]
    columns = [str(column) for column in frame.columns]
    return wandb.Table(columns=columns, data=rows, dtype=types, optional=True)


def _remove_offline_copies(runs: Path, wandb_id: str) -> None:
    """Remove earlier offline copies of a run, so that a sync finds one."""
    copies = (runs / "wandb").glob(f"offline-run-????????_??????-{wandb_id}")
    for folder in [*copies, runs / "wandb" / "staging" / wandb_id]:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(base_url: str) -> bool:
    """Return whether the server answers at all; W&B itself would try for a long time."""
    try:
        urllib.request.urlopen(base_url, timeout=_PROBE_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def has_credentials() -> bool:
    """Return whether W&B would find credentials without asking."""
    if any(os.environ.get(name) for name in _KEY_VARIABLES):
        return True
    hosts = {*_HOSTS, *_own_hosts()}
    for path in _netrc_files():
        try:
            entries = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if any(host in entries.hosts for host in hosts):
            return True
    return False


def _own_hosts() -> set[str]:
    """Return the hosts of a self-hosted W&B that the environment or W&B's settings file names."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        settings.read(Path(folder) / "settings")
    urls = [os.environ.get("WANDB_BASE_URL", "")]
    urls += [settings[section].get("base_url", "") for section in settings.sections()]
    return {urlsplit(url).netloc for url in urls} - {""}


def _netrc_files() -> list[Path]:
    chosen, home = os.environ.get("NETRC"), Path.home()
    return [Path(chosen or home / name).expanduser() for name in (".netrc", "_netrc")]


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
