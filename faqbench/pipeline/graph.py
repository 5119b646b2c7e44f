"""The stages of a cell, in the order in which it asks for them: what `run` makes and `plan` looks up.

To add a stage, write the method of `Keys` that makes its key and the two functions that build and load it
in the file that they belong to, and list it here. A stage comes after those that it needs; what it gives
for the keys of others is a key of its `facts.json`. Nothing else has to know of it: a run asks for it,
times it, keeps it and names it in the record, `cache prune` leaves it, and a plan says whether it is
there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from faqbench.config import Experiment
from faqbench.foreign import read_as
from faqbench.hardware import named_device
from faqbench.models import fingerprint_tokenizer, is_streamed, weights_source
from faqbench.pipeline import calibrating, evaluating, foreign, gates, together
from faqbench.pipeline.calibrating import build_statistics, load_statistics
from faqbench.pipeline.cell import CellRun, CellStage, fingerprints_in
from faqbench.pipeline.cell_model import WeightFacts
from faqbench.pipeline.gates import build_overlap, load_overlap
from faqbench.pipeline.keys import Key, Keys
from faqbench.pipeline.quantizing import DRAWN_MEANS, build_quantized, load_quantized
from faqbench.quantization import may_observe_on_the_way, reads_store
from faqbench.sources import large_files
from faqbench.stages import StageCache, hash_file, hash_json, hash_text
from faqbench.stages.manifest import MANIFEST, entry_name


def stages_of(experiment: Experiment, *, streamed: bool) -> Mapping[str, CellStage]:
    """Return the stages of a cell by id; each comes after those that it needs.

    Args:
        experiment: the cell.
        streamed: whether its model is read block by block.
    """
    # Full precision's hidden states: a streamed model makes them on the way.
    keeps_reference = experiment.needs_reference and not streamed
    stages = [*_files(experiment), *_model()]
    if experiment.needs_calibration:
        stages += _calibration(experiment)
    stages += _protocols(experiment, keeps_reference)
    if experiment.is_foreign:
        stages += _foreign(experiment)
    elif experiment.quantizes:
        stages += _quantization(experiment, streamed)
    stages += _evaluation(experiment, keeps_reference)
    return {stage.id: stage for stage in stages}


def _files(experiment: Experiment) -> list[CellStage]:
    return [
        CellStage(
            name="file_hash",
            title=_file_title(path),
            timed="load",
            key=lambda *_, facts=facts: facts,
            build=partial(_write_hash, path),
            load=lambda _, folder: (folder / "sha256").read_text(),
        )
        for path, facts in large_files(experiment).items()
    ]


def _model() -> list[CellStage]:
    return [
        CellStage(
            name="weights",
            timed="load",
            key=Keys.weights,
            gives={"weights": "fingerprint", "model": "model_fingerprint"},
            build=_build_weights,
            load=_load_weights,
        ),
        CellStage(
            name="tokenizer",
            timed="load",
            key=Keys.tokenizer,
            gives={"tokenizer": "fingerprint"},
            build=_build_tokenizer,
            load=lambda _, __: None,
        ),
    ]


def _calibration(experiment: Experiment) -> list[CellStage]:
    """Return the draw of the calibration set, and what evaluations share with it."""
    evaluation = experiment.evaluation
    drawn = CellStage(
        name="calibration",
        timed="calibrate",
        needs=("weights", "tokenizer"),
        key=partial(calibrating.draw_key, calibrating.calibration_draw),
        gives={"calibration": "fingerprint"},
        build=partial(calibrating.build_draw, calibrating.calibration_draw),
        load=calibrating.load_draw,
    )
    overlaps = [
        CellStage(
            name="overlap",
            title=name,
            timed="calibrate",
            needs=("calibration",),
            key=partial(Keys.overlap, name=name),
            build=partial(build_overlap, name),
            load=partial(load_overlap, name),
        )
        for name in (*evaluation.protocols, *evaluation.tasks)
    ]
    return [drawn, *overlaps]


def _protocols(experiment: Experiment, keeps_reference: bool) -> list[CellStage]:
    """Return the windows of every protocol, and what full precision makes of them."""
    names = experiment.evaluation.protocols
    windows = [
        CellStage(
            name="windows",
            title=name,
            timed="evaluate",
            needs=("weights",),
            key=partial(Keys.windows, name=name),
            gives={f"protocol/{name}": "fingerprint"},
            build=partial(evaluating.build_windows, name),
            load=partial(evaluating.load_windows, name),
        )
        for name in names
    ]
    references = [
        CellStage(
            name="reference",
            title=name,
            timed="reference",
            needs=("weights", f"windows {name}"),
            key=partial(Keys.reference, name=name),
            build=partial(evaluating.build_reference, name),
            load=evaluating.load_scores,
        )
        for name in names
        if keeps_reference
    ]
    return [*windows, *references]


def _quantization(experiment: Experiment, streamed: bool) -> list[CellStage]:
    """Return what a method of ours reads and makes, and the bias of its calibration set."""
    statistics = CellStage(
        name="statistics",
        timed="statistics",
        needs=("weights", "calibration"),
        is_asked=False,
        key=Keys.statistics,
        build=build_statistics,
        load=load_statistics,
    )
    own_basis = experiment.method["rotate"].is_idle
    gathered: list[CellStage] = []
    reads: tuple[str, ...] = ()
    if reads_store(experiment.quant):
        # A model that is read block by block is observed while it is quantized, and its means come first:
        # they are those of the model as loaded.
        walks_once = may_observe_on_the_way(experiment.quant) and streamed
        gathered = [] if walks_once else [statistics]
        reads = (DRAWN_MEANS if walks_once else statistics.id,)
    of_statistics = tuple(stage.id for stage in gathered if own_basis)
    distance = _distance(of_statistics) if experiment.needs_calibration else []
    needs = ["weights"]
    needs += ["calibration"] if experiment.needs_calibration else []
    needs += [f"windows {experiment.adapted_on}"] if experiment.adapted_on is not None else []
    quantized = CellStage(
        name="quantized",
        title=experiment.quant.name,
        timed="quantize",
        needs=tuple(needs),
        reads=reads,
        key=Keys.quantized,
        build=build_quantized,
        load=load_quantized,
    )
    return [*gathered, quantized, *distance]


def _foreign(experiment: Experiment) -> list[CellStage]:
    """Return the stages of weights that another tool has quantized, or quantizes."""
    if experiment.needs_calibration:
        made = CellStage(
            name="external",
            title=experiment.quant.name,
            timed="quantize",
            needs=("weights", "tokenizer", "calibration"),
            key=foreign.external_key,
            gives={"checkpoint": "fingerprint"},
            build=foreign.build_external,
            load=foreign.load_external,
        )
    else:
        made = CellStage(
            name="checkpoint",
            timed="load",
            needs=("weights",),
            key=foreign.checkpoint_key,
            gives={"checkpoint": "fingerprint"},
            build=foreign.build_checkpoint,
            load=foreign.load_checkpoint,
        )
    reports = CellStage(
        name="quantized",
        title=experiment.quant.name,
        timed="quantize",
        needs=("weights", made.id),
        key=Keys.reports,
        build=foreign.build_reports,
        load=foreign.load_reports,
    )
    distance = _distance(()) if experiment.needs_calibration else []
    return [made, reports, *distance]


def _distance(statistics: tuple[str, ...]) -> list[CellStage]:
    """Return the stages of a calibration set's bias, whose means are in the method's statistics."""
    reference_set = CellStage(
        name="calibration",
        title="reference",
        timed="bias_distance",
        needs=("weights", "tokenizer"),
        is_asked=False,
        key=partial(calibrating.draw_key, calibrating.reference_draw),
        gives={"reference_set": "fingerprint"},
        build=partial(calibrating.build_draw, calibrating.reference_draw),
        load=calibrating.load_draw,
    )
    drawn_means = CellStage(
        name="means",
        title="drawn",
        timed="bias_distance",
        needs=("weights", "calibration"),
        reads=statistics,
        is_asked=False,
        key=partial(Keys.means, tokens="calibration"),
        build=calibrating.build_drawn_means,
        load=calibrating.load_means,
    )
    reference_means = CellStage(
        name="means",
        title="reference",
        timed="bias_distance",
        needs=("weights", reference_set.id),
        is_asked=False,
        key=partial(Keys.means, tokens="reference_set"),
        build=calibrating.build_reference_means,
        load=calibrating.load_means,
    )
    distance = CellStage(
        name="bias_distance",
        timed="bias_distance",
        needs=("weights", "calibration", reference_set.id),
        reads=(drawn_means.id, reference_means.id),
        key=Keys.distance,
        build=calibrating.build_distance,
        load=calibrating.load_distance,
        without=calibrating.no_distance,
    )
    return [reference_set, drawn_means, reference_means, distance]


def _evaluation(experiment: Experiment, keeps_reference: bool) -> list[CellStage]:
    """Return the scores of every protocol and task, and the look over the weights."""
    evaluation = experiment.evaluation
    weights = ["weights"]
    weights += ["calibration"] if experiment.needs_calibration else []
    # The stage that quantizes says where the weights are that are evaluated.
    weights += [f"quantized {experiment.quant.name}"] if experiment.quantizes else []
    has_own_scores = experiment.quantizes or not keeps_reference
    perplexities = [
        CellStage(
            name="perplexity",
            title=name,
            timed="evaluate",
            needs=(*weights, f"windows {name}"),
            reads=(f"reference {name}",) if keeps_reference else (),
            key=partial(Keys.protocol, name=name),
            build=partial(together.build_perplexity, name),
            load=evaluating.load_scores,
        )
        for name in evaluation.protocols
        if has_own_scores
    ]
    tasks = [
        CellStage(
            name="tasks",
            title=name,
            timed="evaluate",
            needs=(*weights, "tokenizer"),
            key=partial(Keys.task, name=name),
            build=partial(together.build_task, name),
            load=partial(evaluating.load_task, name),
        )
        for name in evaluation.tasks
    ]
    check = CellStage(
        name="weights_check",
        timed="evaluate",
        needs=tuple(weights),
        key=Keys.check,
        build=gates.build_check,
        load=gates.load_check,
    )
    return [*perplexities, *tasks, check]


@dataclass(frozen=True, kw_only=True)
class StageNeed:
    """One stage of a cell as a plan sees it.

    Attributes:
        kind: the stage's folder in the cache.
        title: which protocol, task, method or set of tokens; empty where there is one kind only.
        entry: `<stage>/<hash of key>`, equal for cells that share it.
        exists: whether the entry is there.
        is_asked: whether the cell would ask for it, once the cells before it have run.
        is_due: whether the cell would make it then.
    """

    kind: str
    title: str
    entry: str
    exists: bool
    is_asked: bool
    is_due: bool


def look_up(experiment: Experiment, cache: StageCache, made: Collection[str]) -> list[StageNeed]:
    """Return the stages of a cell, without making or loading anything.

    What a stage that is not there would give for the keys of others is stood in for by a hash of its key,
    which no entry has, and which is the same for all cells that would find the same.

    Args:
        experiment: the cell.
        cache: where entries are looked for.
        made: the entries that cells before this one will have made.
    """
    stages = stages_of(experiment, streamed=is_streamed(experiment))
    is_here = weights_source(experiment.model) is not None
    given: dict[str, str] = {}
    keys = Keys(experiment, given, named_device(experiment.device).type)
    entries: dict[str, str] = {}
    for stage in stages.values():
        key = stage.key(keys)
        if key is None and is_here:
            given |= _stand_ins(stage, _question(stage, experiment))
            continue  # it is kept nowhere
        key = key or _question(stage, experiment)
        path = cache.find(stage.name, key) if stage.gives else None
        fingerprints = None if path is None else fingerprints_in(path, stage)
        given |= fingerprints or _stand_ins(stage, key)
        given[f"entry/{stage.id}"] = entry_name(key)
        entries[stage.id] = f"{stage.name}/{entry_name(key)}"
    exists = {i: (cache.root / "stages" / entry / MANIFEST).is_file() for i, entry in entries.items()}
    there = {i for i, entry in entries.items() if exists[i] or entry in made}
    asked = _asked(stages, there)
    return [
        StageNeed(
            kind=stages[i].name,
            title=stages[i].title,
            entry=entry,
            exists=exists[i],
            is_asked=i in asked,
            is_due=i in asked and i not in there,
        )
        for i, entry in entries.items()
    ]


def _stand_ins(stage: CellStage, key: Key) -> dict[str, str]:
    return {name: f"unknown-{hash_json(key)}" for name in stage.gives}


def _question(stage: CellStage, experiment: Experiment) -> Key:
    """Return what stands in for a key that is not known: all that it could be made of."""
    sections = ["model"]
    sections += ["evaluation", "data", "limit"] if stage.needs else []
    sections += ["calibration", "scenario"] if stage.name == "calibration" else []
    return {"unknown": stage.id, **experiment.model_dump(mode="json", include=set(sections))}


def _asked(stages: Mapping[str, CellStage], there: Collection[str]) -> set[str]:
    """Return the stages that a cell asks for while some are there, as `CellRun.get` would."""
    asked: set[str] = set()

    def ask(stage: CellStage) -> None:
        if stage.id not in asked:
            asked.add(stage.id)
            for inner in (*stage.needs, *(() if stage.id in there else stage.reads)):
                ask(stages[inner])

    for stage in stages.values():
        if stage.is_asked:
            ask(stage)
    return asked


def _build_weights(cell: CellRun, folder: Path) -> None:
    loaded = cell.model.pristine()
    facts = WeightFacts(
        fingerprint=loaded.fingerprint,
        model_fingerprint=loaded.model_fingerprint,
        n_linears=len(loaded.architecture.linear_names()),
        n_parameters=loaded.view.n_parameters,
        vocab_size=loaded.architecture.vocab_size,
        warnings=loaded.warnings,
    )
    (folder / "facts.json").write_text(json.dumps(asdict(facts)))


def _load_weights(cell: CellRun, folder: Path) -> WeightFacts:
    cell.model.facts = read_as(folder / "facts.json", WeightFacts)
    return cell.model.facts


def _build_tokenizer(cell: CellRun, folder: Path) -> None:
    facts = {"fingerprint": fingerprint_tokenizer(cell.model.tokenizer())}
    (folder / "facts.json").write_text(json.dumps(facts))


def hash_in(cell: CellRun, path: Path) -> str:
    """Return the sha256 of a file that a cell names; that of a large one is a stage."""
    stage_id = f"file_hash {_file_title(path)}"
    digest: str = cell.get(stage_id) if stage_id in cell.stages else hash_file(path)
    return digest


def _file_title(path: Path) -> str:
    """Return a name for a file that tells it from another of its name, and no folder of this machine."""
    return f"{path.name} {hash_text(str(path))[:8]}"


def _write_hash(path: Path, _: CellRun, folder: Path) -> None:
    (folder / "sha256").write_text(hash_file(path))
