"""trackio: a local dashboard with W&B's names, for those without an account.

Runs lie in `TRACKIO_DIR`, else in `<runs>/trackio`; `TRACKIO_DIR=runs/trackio trackio show` opens the
dashboard. A run that is shown again replaces the one of its name, so twice is the same as once. `mode`
has no meaning here beyond `disabled`; the group is the sweep.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from faqbench.config.experiment import TrackingSection
from faqbench.tracking.samples import ProgressSample
from faqbench.tracking.view import RunHead, RunView


def open_run(head: RunHead, section: TrackingSection, runs: Path) -> TrackioRun | None:
    """See `Service.open_run`."""
    return None if section.mode == "disabled" else TrackioRun(head, section, runs)


class TrackioRun:
    """A trackio run, from its beginning to its end."""

    def __init__(self, head: RunHead, section: TrackingSection, runs: Path) -> None:
        # trackio reads the variable when it is imported.
        os.environ.setdefault("TRACKIO_DIR", str((runs / "trackio").absolute()))
        import trackio

        self._trackio: Any = trackio
        with _quiet():
            _remove_earlier(trackio, section.project, head.run_id)
            self._run: Any = trackio.init(
                project=section.project,
                name=head.run_id,
                group=head.group,
                config={**head.config, "job_type": head.job_type, "tags": list(head.tags)},
                resume="never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._n_samples = 0

    def sample(self, number: int, sample: ProgressSample) -> None:
        """See `OpenRun.sample`."""
        self._n_samples = number + 1
        values = {
            "live/seconds": sample.seconds,
            "live/done_frac": sample.done / sample.total if sample.total else 0.0,
            "live/memory_bytes": sample.memory_bytes,
        }
        self._run.log(values, step=number)

    def finish(self, view: RunView) -> None:
        """See `OpenRun.finish`."""
        blocks = sorted({block for curve in view.curves.values() for block, _ in curve})
        curves = {name: dict(curve) for name, curve in view.curves.items()}
        for i, block in enumerate(blocks):
            values = {f"blocks/{n}": curve[block] for n, curve in curves.items() if block in curve}
            self._run.log({"block": block, **values}, step=self._n_samples + i)
        numbers = {
            name: float(value) for name, value in view.summary.items() if isinstance(value, int | float)
        }
        self._run.log(numbers, step=self._n_samples + len(blocks))
        with tempfile.TemporaryDirectory() as scratch:
            images = {}
            for image in view.images:
                path = Path(scratch) / f"{image.name}.png"
                path.write_bytes(image.png)
                images[f"plots/{image.name}"] = path
            captions = {f"plots/{image.name}": image.caption for image in view.images}
            tables = {f"tables/{name}": table for name, table in view.tables.items()}
            self._log_media(images, captions, tables, self._n_samples + len(blocks) + 1)
        self.close()

    def _log_media(
        self,
        images: dict[str, Path],
        captions: dict[str, str],
        tables: dict[str, pd.DataFrame],
        step: int = 0,
    ) -> None:
        """Show plots and tables."""
        shown: dict[str, Any] = {
            name: self._trackio.Image(str(path), caption=captions.get(name))
            for name, path in images.items()
        }
        shown |= {name: self._trackio.Table(dataframe=table) for name, table in tables.items()}
        if shown:
            self._run.log(shown, step=step)

    def points(self, points: Sequence[Mapping[str, float]]) -> None:
        """See `OpenRun.points`."""
        for step, point in enumerate(points):
            self._run.log(dict(point), step=step)
        self.close()

    def report(self, folder: Path) -> None:
        """See `OpenRun.report`."""
        images = {f"plots/{p.stem}": p for p in sorted(folder.glob("figures/*.png"))}
        tables = {f"tables/{p.stem}": pd.read_parquet(p) for p in sorted(folder.glob("tables/*.parquet"))}
        self._log_media(images, {}, tables)
        self.close()

    def abandon(self) -> None:
        """See `OpenRun.abandon`."""
        self.close()

    def close(self) -> None:
        """End the run; a second call does nothing."""
        run, self._run = self._run, None
        if run is not None:
            with _quiet():
                run.finish()


def _remove_earlier(trackio: Any, project: str, name: str) -> None:
    """Remove the runs of a name; a project that does not exist yet has none."""
    try:
        runs = list(trackio.Api().runs(project))
    except ValueError:
        return
    for run in runs:
        if run.name == name:
            run.delete()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep trackio from printing; what fails is raised."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
