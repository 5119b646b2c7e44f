"""The evaluation of a streamed model: one walk over its blocks for all that is not there yet.

    block 0: windows of every protocol, packs of every task;   block 1: ...;   then norm, head, scores

Evaluations stay stages of their own, each under its key, and so does the look over all weights. The first
of a cell that is asked for and not there makes the others as well, since reading a model that does not fit
takes longer than what one of them computes; and those of cells beside it whose quantized weights are
finished and that are evaluated alike, as long as the memory budget has room for their hidden states. The
full precision model goes through the same walk once for all of them. Scores are those of a resident model
to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faqbench.config import Experiment
from faqbench.evaluation import (
    Answers,
    Beside,
    Packs,
    Probe,
    ProtocolTokens,
    Question,
    Request,
    TaskModel,
    Windows,
    answer,
    check_windows,
    pack,
    run_task,
    splits,
    task_requests,
)
from faqbench.models import Model, is_streamed
from faqbench.pipeline import evaluating
from faqbench.pipeline.cell import CellRun, CellStage
from faqbench.pipeline.evaluating import EvaluationCost
from faqbench.pipeline.gates import WeightsLook, write_check
from faqbench.pipeline.quantizing import finished_linears, share_walk

_ALIKE = ("evaluation", "dtype")
_EVALUATIONS = ("perplexity", "tasks")
_MADE = (*_EVALUATIONS, "weights_check")  # whose weights the walk has read


def build_perplexity(name: str, cell: CellRun, folder: Path) -> None:
    """Score a protocol's windows by the cell's model, and compare it with the reference if wanted."""
    if not _walk_for(f"perplexity {name}", cell, folder):
        evaluating.build_perplexity(name, cell, folder)


def build_task(name: str, cell: CellRun, folder: Path) -> None:
    """Let the cell's model answer a task.

    Raises:
        UserError: as `run_task` does.
    """
    if not _walk_for(f"tasks {name}", cell, folder):
        evaluating.build_task(name, cell, folder)


@dataclass(frozen=True, kw_only=True, eq=False)
class _ScoredCell:
    """A cell's model in the walk.

    Attributes:
        experiment: of the cell.
        view: to be scored.
        stages: the evaluations that are not there yet, by id.
    """

    experiment: Experiment
    view: Model
    stages: Mapping[str, CellStage]


def _walk_for(stage_id: str, cell: CellRun, folder: Path) -> bool:
    """Make an evaluation, and all others of the walk; False where a model has to be run as it is."""
    if not is_streamed(cell.experiment) or not splits(cell.model.evaluated()):
        return False
    _Walk(cell).run(stage_id, folder)
    return True


class _Walk:
    """What is asked in one walk, and of which models; the cell's own is the first."""

    def __init__(self, cell: CellRun) -> None:
        """Look what is missing, and prepare the questions.

        Raises:
            UserError: for whatever a protocol or a task cannot do with the model.
        """
        self._cell = cell
        for stage in cell.stages.values():
            for need in stage.needs if stage.name in _EVALUATIONS else ():
                cell.get(need)
        experiment, missing = cell.model.experiment, self._missing(cell.model.experiment)
        beside = None
        if experiment.needs_reference and experiment.quantizes:
            rotated = cell.model.rotated()
            rotate = None if rotated is None else rotated.rotate_output
            beside = Beside(view=cell.model.full_precision(), rotate=rotate)
        own = cell.model.evaluated()
        self._scored = [_ScoredCell(experiment=experiment, view=own, stages=missing)]
        self._windows: dict[str, ProtocolTokens] = {
            stage.title: cell.get(f"windows {stage.title}")
            for stage in cell.stages.values()
            if stage.name == "perplexity"
        }
        for windows in self._windows.values():
            check_windows(own.module, windows.tokens)
        tokenizer = cell.model.tokenizer()
        self._requests = {
            stage.title: task_requests(
                stage.title, TaskModel(own.module, tokenizer, own), experiment, cell.progress
            )
            for stage in cell.stages.values()
            if stage.name == "tasks"
        }
        batch_tokens = experiment.evaluation.batch_tokens
        self._packs = {
            requests: pack(requests, batch_tokens)
            for asked in self._requests.values()
            for requests in asked
        }
        self._scored += self._others(1 if beside is None else 2)
        self._protocols = {
            name: Windows(views, self._windows[name].tokens, batch_tokens, own.module, reference=beside)
            for name in self._windows
            if (views := [one.view for one in self._with("perplexity", name)])
        }
        self._tasks = {
            (one.view, requests): Packs(one.view, own.module, self._packs[requests], len(requests))
            for name, asked in self._requests.items()
            for one in self._with("tasks", name)
            for requests in asked
        }
        self._looks = {one.view: WeightsLook(one.view) for one in self._with("weights_check", "")}
        self._probes = {view: Probe(view) for view in dict.fromkeys(view for view, _ in self._tasks)}

    def run(self, stage_id: str, folder: Path) -> None:
        """Walk, and write what came out: the stage that is under way into its folder, others as entries."""
        cell, scored = self._cell, self._scored[0]
        n_beside = f" and {len(self._scored) - 1} more" if len(self._scored) > 1 else ""
        title = f"evaluate {cell.experiment.quant.name}{n_beside}"
        start = time.perf_counter()
        with cell.memory.section() as section:
            questions: list[Question] = [
                *self._protocols.values(),
                *self._probes.values(),
                *self._tasks.values(),
            ]
            with cell.progress.activity(title, scored.view.architecture.n_blocks) as advance:
                answer(questions, advance, head=scored.view, beside=list(self._looks.values()))
        seconds = time.perf_counter() - start
        writers = [
            (one, stage, self._writer(one, stage)) for one in self._scored for stage in one.stages.values()
        ]
        n_tokens = sum(self._n_tokens(stage) for _, stage, _ in writers)
        for one, stage, write in writers:
            share = seconds * self._n_tokens(stage) / n_tokens
            build = partial(write, EvaluationCost(seconds=share, peak_memory_bytes=section.bytes))
            if one is scored and stage.id == stage_id:
                build(folder)
            else:
                key = stage.key(cell.keys_of(one.experiment))
                assert key is not None, "evaluations have versions"
                cell.cache.keep(stage.name, key, build, share if one is scored else 0.0)

    def _missing(self, experiment: Experiment) -> dict[str, CellStage]:
        cell, missing = self._cell, {}
        for stage in cell.stages.values():
            if stage.name in _MADE:
                key = stage.key(cell.keys_of(experiment))
                if key is not None and not cell.cache.has(stage.name, key):
                    missing[stage.id] = stage
        return missing

    def _with(self, kind: str, title: str) -> list[_ScoredCell]:
        """Return the models of which an evaluation is missing."""
        return [one for one in self._scored if f"{kind} {title}".strip() in one.stages]

    def _others(self, n_before: int) -> list[_ScoredCell]:
        """Return the cells beside this one that are evaluated in its walk, as many as there is room for."""
        cell, scored = self._cell, self._scored[0]
        n_tokens = sum(self._n_tokens(stage) for stage in scored.stages.values())
        width = scored.view.architecture.hidden_size * scored.view.dtype.itemsize
        room, others = scored.view.room.hidden_bytes, list[_ScoredCell]()
        for other in cell.beside:
            fits = room is None or (n_before + len(others) + 1) * n_tokens * width <= room
            alike = all(getattr(cell.experiment, s) == getattr(other, s) for s in _ALIKE)
            is_new = all(other.quant != one.experiment.quant for one in (scored, *others))
            if not (fits and alike and is_new and share_walk(cell.experiment, other)):
                continue
            experiment = other.model_copy(update={"model": scored.experiment.model})
            missing = self._missing(experiment)
            linears = finished_linears(cell, experiment) if missing else None
            if linears is not None:
                view = cell.model.view_of(experiment, linears)
                others.append(_ScoredCell(experiment=experiment, view=view, stages=missing))
        return others

    def _n_tokens(self, stage: CellStage) -> int:
        if stage.name == "weights_check":
            return 0
        if stage.name == "perplexity":
            return self._windows[stage.title].tokens.numel()
        return 1 + sum(p.tokens.size for r in self._requests[stage.title] for p in self._packs[r])

    def _writer(self, one: _ScoredCell, stage: CellStage) -> Callable[[EvaluationCost, Path], None]:
        """Return what writes one model's evaluation, from what it has cost, into a folder."""
        if stage.name == "weights_check":
            return lambda _, folder: write_check(self._looks[one.view].check(), folder)
        name = stage.title
        if stage.name == "perplexity":
            place = [other.view for other in self._with("perplexity", name)].index(one.view)
            scores = self._protocols[name].scores()[place]
            tokens = self._windows[name].tokens
            return lambda cost, folder: evaluating.write_scores(scores, tokens, cost, folder)
        own: Sequence[tuple[Request, ...]] = self._requests[name]
        answers = None
        if own:
            scored = {requests: self._tasks[one.view, requests] for requests in own}
            answers = Answers(
                scores={r: (packs.loglikelihood, packs.is_greedy) for r, packs in scored.items()},
                refusal=self._probes[one.view].refusal(),
            )
        model = TaskModel(one.view.module, self._cell.model.tokenizer(), one.view, answers=answers)

        def write(cost: EvaluationCost, folder: Path) -> None:
            result = run_task(name, model, one.experiment, self._cell.progress)
            evaluating.write_task(result, cost, folder)

        return write
