"""Weights & Biases: one W&B run per cell, rebuilt from its record.

    run       id from the run id, `resume="allow"`; group = sweep; job_type baseline or cell; tags
    config    the record's configuration, nested, and its fingerprints
    summary   eval/<task>/<metric> and eval/<task>/<metric>_stderr, bits_per_weight, seconds,
              peak_memory_bytes, gates/<name>, gates_passed, stages/<name>/seconds
    history   blocks/relative_error over `block`, the mean over the block's linears
    tables    metrics, linears

A failed cell's run is finished with exit code 1. Mode `auto` is online where credentials are
configured and offline elsewhere; offline runs lie in `<runs>/wandb/` and `wandb sync` uploads them
later, under the same id. A server that does not answer makes a run offline, and whatever else goes
wrong inside W&B is one warning: the record has everything.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pandas as pd

from faqbench.config.experiment import TrackingSection
from faqbench.records import RunData, RunRecord
from faqbench.tracking.credentials import has_credentials

_log = logging.getLogger("faqbench")
Mode = Literal["auto", "online", "offline", "disabled"]
_LONGEST_ID = 64
_PROBE_SECONDS = 4.0
_INIT_SECONDS = 20.0
_FINISH_SECONDS = 120.0


class WandbTracker:
    """Shows runs in W&B."""

    def __init__(self, section: TrackingSection, runs: Path) -> None:
        self._section = section
        self._runs = runs

    def log(self, data: RunData) -> None:
        """See `Tracker.log`."""
        mode = resolve_mode(self._section.mode)
        if mode == "disabled":
            return
        if mode != "online" and self._section.mode == "online":
            _log.warning("W&B has no credentials here: run %s is offline", data.record.run_id)
        try:
            self._runs.mkdir(parents=True, exist_ok=True)
            _show(data, self._section, self._runs, mode)
        except Exception as error:
            if not (isinstance(error, OSError) or _raised_inside_wandb(error)):
                raise
            reason = str(error).strip().splitlines() or [""]
            _log.warning(
                "W&B could not show run %s (%s: %s); its record is complete",
                data.record.run_id,
                type(error).__name__,
                reason[0][:200],
            )


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


def summary(record: RunRecord) -> dict[str, Any]:
    """Return the final numbers under their stable names; what was not measured is left out."""
    numbers: dict[str, Any] = {
        "status": record.status,
        "error": record.error,
        "bits_per_weight": record.bits_per_weight,
        "checkpoint_bytes": record.checkpoint_bytes,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "n_warnings": len(record.warnings),
        "gates_passed": all(gate.passed for gate in record.gates),
    }
    for metric in record.metrics:
        numbers[f"eval/{metric.task}/{metric.name}"] = metric.value
        numbers[f"eval/{metric.task}/{metric.name}_stderr"] = metric.stderr
    numbers |= {f"gates/{gate.name}": gate.passed for gate in record.gates}
    numbers |= {f"stages/{name}/seconds": stage.seconds for name, stage in record.stages.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def _show(
    data: RunData, section: TrackingSection, runs: Path, mode: Literal["online", "offline"]
) -> None:
    import wandb

    record = data.record
    session = wandb.setup(settings=wandb.Settings(silent=True, quiet=True))
    if mode == "online" and not _answers(session.settings.base_url):
        _log.warning("W&B does not answer: run %s is offline, for `wandb sync`", record.run_id)
        mode = "offline"
    if mode == "offline":
        _remove_offline_copies(runs, record.run_id)
    with _staging(runs, record.run_id):
        run = _start(wandb, record, section, runs, mode)
        exit_code = 1
        try:
            _log_curve(run, data.layers)
            run.summary.update(summary(record))
            _log_tables(wandb, run, data)
            exit_code = 0 if record.status == "finished" else 1
        finally:
            run.finish(exit_code=exit_code)


def _start(
    wandb: Any,
    record: RunRecord,
    section: TrackingSection,
    runs: Path,
    mode: Literal["online", "offline"],
) -> Any:
    """Start the W&B run of a record, or resume it."""
    return wandb.init(
        entity=section.entity,
        project=section.project,
        dir=str(runs),
        id=stable_id(record.run_id),
        name=record.run_id,
        group=section.group,
        job_type="baseline" if record.config.get("quant", {}).get("round") == "none" else "cell",
        tags=[*section.tags, *(() if record.status == "finished" else ("failed",))],
        config={**record.config, "fingerprints": record.fingerprints},
        mode=mode,
        resume="allow",
        reinit="create_new",
        save_code=False,
        settings=_settings(wandb),
    )


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


def _log_curve(run: Any, layers: pd.DataFrame) -> None:
    """Log the mean relative error per block; the steps are the blocks: repeats add nothing."""
    if not {"block", "relative_error"} <= set(layers.columns):
        return
    run.define_metric("block")
    run.define_metric("blocks/*", step_metric="block")
    curve = layers.groupby("block", as_index=False)["relative_error"].mean()
    for block, error in zip(curve["block"].tolist(), curve["relative_error"].tolist(), strict=True):
        run.log({"block": block, "blocks/relative_error": error}, step=block)


def _log_tables(wandb: Any, run: Any, data: RunData) -> None:
    metrics = pd.DataFrame([vars(metric) for metric in data.record.metrics])
    tables = {"tables/metrics": metrics, "tables/linears": data.layers}
    step = len(data.layers)  # after every block
    shown = {name: _table(wandb, frame) for name, frame in tables.items() if len(frame)}
    if shown:
        run.log(shown, step=step)


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


def _remove_offline_copies(runs: Path, run_id: str) -> None:
    """Remove earlier offline copies of a run, so that a sync finds one."""
    wandb_id = stable_id(run_id)
    copies = (runs / "wandb").glob(f"offline-run-????????_??????-{wandb_id}")
    for folder in [*copies, runs / "wandb" / "staging" / wandb_id]:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _staging(runs: Path, run_id: str) -> Iterator[None]:
    """Let W&B stage tables below `runs`, not in the home folder; only a variable can say so."""
    chosen = os.environ.get("WANDB_DATA_DIR")
    if chosen is None:
        folder = runs / "wandb" / "staging" / stable_id(run_id)
        os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["WANDB_DATA_DIR"]


def _answers(base_url: str) -> bool:
    """Return whether the server answers at all; W&B itself would try for a long time."""
    try:
        urllib.request.urlopen(base_url, timeout=_PROBE_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _raised_inside_wandb(error: BaseException) -> bool:
    """Return whether W&B was on the stack; its crashes have types of many modules and of none."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == "wandb":
            return True
        trace = trace.tb_next
    return isinstance(error, ImportError)
