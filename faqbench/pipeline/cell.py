"""One cell under way: what all of its stages share, and what a stage is.

A stage is data. Its key is made of the experiment, of what the stages that it needs have given, and of the
kind of device; so `run` and `plan` know it alike, the one to make it, the other to look whether it is
there. `graph.py` lists the stages of a cell.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from faqbench.config import Experiment, UserError
from faqbench.evaluation import TaskModel
from faqbench.foreign import read_as
from faqbench.hardware import resolve_device
from faqbench.models import ModelHolder
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.environment import PeakMemory
from faqbench.pipeline.keys import Key, Keys
from faqbench.records import StageTiming
from faqbench.stages import Progress, StageCache, StageUse

# What reading something else than was written raises; to run out of memory is none of it.
_ODD = (ValueError, LookupError, TypeError, AttributeError, EOFError, SafetensorError)
MakeKey = Callable[[Keys], Key | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class CellStage:
    """One stage of a cell.

    Attributes:
        name: its folder in the cache.
        title: which protocol, task, method or set of tokens; empty where a cell has one alone.
        timed: the name that a record times it under.
        needs: the stages whose results its key is made of, by `Stage.id`.
        reads: the stages that making it asks for besides; a stage that is there asks for none of them.
        is_asked: whether the cell asks for it; otherwise only those that read it do.
        key: makes its key. None means that the result has no version, and is made anew by every cell.
        gives: the names of its fingerprints, each with the key of the entry's `facts.json` that holds it.
        build: writes its files into an empty folder.
        load: reads them again, and raises a `UserError` where the cell cannot go on with what they say.
        without: makes what stands in for the result, from the reason, where what it needs cannot be had;
            None where a cell fails for that.
    """

    name: str
    title: str = ""
    timed: str
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    is_asked: bool = True
    key: MakeKey
    gives: Mapping[str, str] = field(default_factory=dict)
    build: Callable[[CellRun, Path], None]
    load: Callable[[CellRun, Path], Any]
    without: Callable[[str], Any] | None = None

    @property
    def id(self) -> str:
        """Its name and title, by which the cell's other stages refer to it."""
        return f"{self.name} {self.title}".rstrip()


class CellRun:
    """What the stages of one cell share, and the results that they have given so far.

    Attributes:
        experiment: the cell's configuration.
        cache: where stages are kept and found.
        progress: told of every stage.
        stages: of the cell by id, in the order in which it asks for them; none until the model is here.
        device: where it runs.
        memory: its peak so far.
        model: the cell's.
        beside: other cells that this process is to run, of which some may be quantized in the same walk.
        fingerprints: what stages have given for the keys of others; `entry/<id>` names a stage's entry.
    """

    def __init__(
        self,
        experiment: Experiment,
        cache: StageCache,
        progress: Progress,
        holder: ModelHolder,
        beside: Sequence[Experiment] = (),
    ) -> None:
        self.experiment = experiment
        self.beside = beside
        self.cache = cache
        self.progress = progress
        self.stages: Mapping[str, CellStage] = {}
        self.device = resolve_device(experiment.device)
        self.memory = PeakMemory(self.device)
        self.model = CellModel(experiment, self.device, holder, cache, progress)
        self.fingerprints: dict[str, str] = {}
        self._task_model: TaskModel | None = None
        self._results: dict[str, Any] = {}
        self._timings: dict[str, list[StageTiming]] = defaultdict(list)
        self._n_uses_before = len(cache.uses)
        self._start = time.perf_counter()

    def walk(self) -> None:
        """Ask for every stage in turn.

        Raises:
            UserError: for anything that the user can mend.
        """
        for stage in self.stages.values():
            if stage.is_asked:
                self.get(stage.id)

    def get(self, stage_id: str) -> Any:
        """Return the result of a stage, made when it is neither known nor in the cache.

        Raises:
            UserError: for anything that the user can mend.
        """
        if stage_id not in self._results:
            stage = self.stages[stage_id]
            self._results[stage_id] = self._result(stage)
        return self._results[stage_id]

    @property
    def keys(self) -> Keys:
        """The keys of this cell's stages."""
        return self.keys_of(self.model.experiment)

    def keys_of(self, experiment: Experiment) -> Keys:
        """Return the keys of the stages of another cell that is made of the same ones."""
        return Keys(experiment, self.fingerprints, self.device.type)

    def entry(self, stage_id: str) -> Path:
        """Return the folder of a stage that was asked for and is kept."""
        stage = self.stages[stage_id]
        return self.cache.root / "stages" / stage.name / self.fingerprints[f"entry/{stage_id}"]

    @property
    def uses(self) -> list[StageUse]:
        """The entries of the cache that this cell asked for."""
        return self.cache.uses[self._n_uses_before :]

    @property
    def seconds(self) -> float:
        """Wall-clock time since the cell began."""
        return time.perf_counter() - self._start

    @property
    def timings(self) -> dict[str, StageTiming]:
        """Seconds of the stages so far, and whether all was there, by the names that records have."""
        timings = {**self._timings, "load": [self.model.loading, *self._timings["load"]]}
        return {
            name: StageTiming(
                seconds=round(sum(t.seconds for t in parts), 3), cached=all(t.cached for t in parts)
            )
            for name, parts in timings.items()
        }

    def task_model(self) -> TaskModel:
        """Return the model as its tasks see it, loaded."""
        if self._task_model is None:
            view = self.model.evaluated()
            self._task_model = TaskModel(view.fill().module, self.model.tokenizer(), view)
        return self._task_model

    def _result(self, stage: CellStage) -> Any:
        """Return a stage's result, made or from the cache; an odd entry is made anew."""
        try:
            for need in stage.needs:
                self.get(need)
        except UserError as error:
            if stage.without is None:
                raise
            return stage.without(str(error))
        key = stage.key(self.keys)
        build = partial(stage.build, self)
        if key is None:
            with TemporaryDirectory() as folder:
                with self.cache.lap() as lap:
                    build(Path(folder))
                return self._loaded(stage, Path(folder), lap.seconds, is_cached=False)
        entry = self.cache.get(stage.name, key, build, stage.title)
        self.fingerprints[f"entry/{stage.id}"] = entry.path.name
        try:
            return self._loaded(stage, entry.path, entry.seconds, is_cached=entry.cached)
        except _ODD as error:
            if isinstance(error, UserError) or not entry.cached:
                raise
            # Its checksums are right and what it says is not: somebody else wrote it.
            self.cache.reject(stage.name, key, str(error) or type(error).__name__)
        entry = self.cache.get(stage.name, key, build, stage.title)
        return self._loaded(stage, entry.path, entry.seconds, is_cached=False)

    def _loaded(self, stage: CellStage, folder: Path, seconds: float, *, is_cached: bool) -> Any:
        self.fingerprints |= fingerprints_in(folder, stage)
        loaded = stage.load(self, folder)
        self._timings[stage.timed].append(StageTiming(seconds=seconds, cached=is_cached))
        return loaded


def fingerprints_in(folder: Path, stage: CellStage) -> dict[str, str]:
    """Return what a stage's files give for the keys of others."""
    if not stage.gives:
        return {}
    facts = read_as(folder / "facts.json", dict[str, Any])
    wrong = [key for key in stage.gives.values() if not isinstance(facts.get(key), str)]
    if wrong:
        raise ValueError(f"facts.json: {wrong[0]} is no text")
    return {name: facts[key] for name, key in stage.gives.items()}
