"""MLflow: at MLFLOW_TRACKING_URI, else in a database of its own below `runs/`.

An MLflow run is found again by its tag `faqbench.run_id`, and a number is logged with the time at
which the cell reached it, so showing a run again adds nothing: MLflow keeps one number per key, step
and time. Parameters are the configuration, flattened. `mode` has no meaning here beyond `disabled`.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from faqbench.config.experiment import TrackingSection
from faqbench.tracking.samples import ProgressSample
from faqbench.tracking.view import RunHead, RunView

_LONGEST_VALUE = 500
_BATCH = 500
_TAG = "faqbench.run_id"


def open_run(head: RunHead, section: TrackingSection, runs: Path) -> MlflowRun | None:
    """See `Service.open_run`."""
    return None if section.mode == "disabled" else MlflowRun(head, section, runs)


class MlflowRun:
    """An MLflow run, from its beginning to its end."""

    def __init__(self, head: RunHead, section: TrackingSection, runs: Path) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=_tracking_uri(runs))
        self._id: str | None = _find_or_create(self._client, head, section, runs)
        self._n_samples = 0
        self._client.update_run(self._id, status="RUNNING")
        self._log_params(head.config)

    def sample(self, number: int, sample: ProgressSample) -> None:
        """See `OpenRun.sample`."""
        self._n_samples = number + 1
        values = {
            "live/done_frac": sample.done / sample.total if sample.total else 0.0,
            "live/memory_bytes": sample.memory_bytes,
        }
        self._log(values, number, round(1000 * sample.seconds))

    def finish(self, view: RunView) -> None:
        """See `OpenRun.finish`."""
        record = view.record
        end = _milliseconds(record.started) + round(1000 * record.seconds)
        for name, curve in view.curves.items():
            for block, value in curve:
                self._log({f"blocks/{name}": value}, block, end)
        numbers = {n: v for n, v in view.summary.items() if isinstance(v, int | float)}
        self._log(numbers, 0, end)
        words = {n: v for n, v in view.summary.items() if isinstance(v, str)}
        words["fingerprints"] = json.dumps(record.fingerprints)
        for name, text in words.items():
            self._client.set_tag(self._id, f"faqbench.{name}", text[: 10 * _LONGEST_VALUE])
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for image in view.images:
                (folder / f"{image.name}.png").write_bytes(image.png)
            for name, table in view.tables.items():
                table.to_csv(folder / f"{name}.csv", index=False)
            self._keep(folder, "shown")
        for path in view.files.values():
            self._client.log_artifact(self._id, str(path), "record")
        self.close("FINISHED" if record.status == "finished" else "FAILED")

    def points(self, points: Sequence[Mapping[str, float]]) -> None:
        """See `OpenRun.points`."""
        for step, point in enumerate(points):
            self._log(point, step, 1000 * step)
        self.close("FINISHED")

    def report(self, folder: Path) -> None:
        """See `OpenRun.report`."""
        self._keep(folder)
        self.close("FINISHED")

    def abandon(self) -> None:
        """See `OpenRun.abandon`."""
        self.close("FAILED")

    def _keep(self, folder: Path, place: str | None = None) -> None:
        """Keep a folder's files with the run."""
        self._client.log_artifacts(self._id, str(folder), place)

    def close(self, status: str) -> None:
        """End the run; a second call does nothing."""
        run, self._id = self._id, None
        if run is not None:
            self._client.set_terminated(run, status)

    def _log(self, values: Mapping[str, float], step: int, milliseconds: int) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_legal(name), float(value), milliseconds, step)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        for i in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._id, metrics=metrics[i : i + _BATCH])

    def _log_params(self, config: Mapping[str, Any]) -> None:
        """Log the configuration once: MLflow refuses a second value, and a run id has but one."""
        from mlflow.entities import Param

        logged = self._client.get_run(self._id).data.params
        params = [
            Param(_legal(key), value[:_LONGEST_VALUE])
            for key, value in _flat(config)
            if _legal(key) not in logged
        ]
        for i in range(0, len(params), 100):
            self._client.log_batch(self._id, params=params[i : i + 100])


def _tracking_uri(runs: Path) -> str:
    """Return where the user keeps runs, else a database below `runs`."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    if chosen:
        return chosen
    (runs / "mlflow").mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(runs / 'mlflow' / 'mlflow.db').absolute()}"


def _find_or_create(client: Any, head: RunHead, section: TrackingSection, runs: Path) -> str:
    experiment = client.get_experiment_by_name(section.project)
    if experiment is None:
        artifacts = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            artifacts = (runs / "mlflow" / "artifacts").absolute().as_uri()
        place = client.create_experiment(section.project, artifact_location=artifacts)
    else:
        place = experiment.experiment_id
    text = head.run_id.replace("'", "")
    same_runs = client.search_runs([place], filter_string=f"tags.`{_TAG}` = '{text}'", max_results=1)
    if same_runs:
        return str(same_runs[0].info.run_id)
    tags = {_TAG: text, "job_type": head.job_type, "group": head.group or ""}
    tags |= {f"tag.{_legal(tag)}": "true" for tag in head.tags}
    return str(client.create_run(place, run_name=head.run_id, tags=tags).info.run_id)


def _legal(name: str) -> str:
    """Return a name of the characters that MLflow allows."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", name)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _milliseconds(started: str) -> int:
    try:
        return round(1000 * datetime.fromisoformat(started).timestamp())
    except ValueError:
        return 0
