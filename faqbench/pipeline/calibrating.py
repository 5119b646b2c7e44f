"""The cached stages before the quantizers: windows of tokens are drawn, and observed in full precision.

A `Draw` says what windows are drawn from and how; three are made of an experiment: a calibration set, and
what it is compared with. Its key holds where the texts come from and not the texts, so a set that is there
is found without reading a corpus.

How far a calibration set is from the reference set, a record says of every calibrated cell. The distance in
activations needs mean|x| of the full precision pass on both sets. Methods that search in
the set's statistics have them already, and so has any method whose draw another one has searched in; the
rest (GPTQ and the corrections, which see the quantized stream only) pay for one forward pass per draw,
without Gram matrices. The numbers are the same to the bit either way, so what is cached decides the time
alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from faqbench.calibration import (
    CODE_VERSION,
    CalibrationSet,
    DrawRequest,
    activation_shift,
    draw,
    draw_evaluation,
    draw_without_text,
    load_calibration_set,
    request_of,
    save_calibration_set,
    token_divergence,
)
from faqbench.config import Experiment, UserError
from faqbench.config.calibration import CalibrationSection, ScenarioSection, matched, mixture_of
from faqbench.corpora import Part, corpus_source, read_corpus
from faqbench.evaluation import protocol_tokens, resolve_protocol, text_source
from faqbench.evaluation.protocols import protocol_text
from faqbench.foreign import read_as
from faqbench.models import LoadedModel, check_ids, fingerprint_tokenizer, inspect_model
from faqbench.pipeline.cell import CellRun
from faqbench.pipeline.keys import Key, Keys
from faqbench.quantization import ActivationStore, observe
from faqbench.quantization.activations import copy_means, observe_means, read_means
from faqbench.stages import Progress, StageCache, library_version

# What a scenario changes of the windows themselves; the rest chooses corpora and their number.
_DRAWN = (
    "min_characters", "max_characters", "length_power", "rarity", "copies", "shuffle_tokens",
    "noise_rate",
)  # fmt: skip
_HOLDER = "The calibration set"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What windows are drawn from, and how.

    Attributes:
        calibration: how texts become windows.
        scenario: how the draw departs from that.
        mixture: the domains, and their shares of the windows.
        part: of the domains.
        n_windows: of all of them together.
    """

    calibration: CalibrationSection
    scenario: ScenarioSection
    mixture: Mapping[str, float]
    part: Part
    n_windows: int


def calibration_draw(experiment: Experiment) -> Draw:
    """Return the draw of the set that an experiment's quantizer sees."""
    return Draw(
        calibration=experiment.calibration,
        scenario=experiment.scenario,
        mixture=experiment.calibration_mixture,
        part="calibration",
        n_windows=experiment.n_calibration_samples,
    )


def reference_draw(experiment: Experiment) -> Draw:
    """Return the draw of the set that the bias of an experiment's calibration set is measured from.

    It is what `calibration` describes without the scenario, `n_reference` windows of it, from the
    selection part, with seed 0: no text of it is in any calibration set, so that an unbiased draw shows
    the distance that chance alone makes, and all draws and scenarios are measured from one point.
    """
    mixture = mixture_of(experiment.calibration, matched())
    return _selected(experiment, mixture, experiment.calibration.n_reference)


def selection_draw(experiment: Experiment) -> Draw:
    """Return the draw of the text that a presearch judges by: `n_windows` from each of its domains."""
    settings = experiment.presearch
    mixture = mixture_of(experiment.calibration, matched())
    if settings.domains is not None:
        mixture = dict.fromkeys(settings.domains, 1.0 / len(settings.domains))
    return _selected(experiment, mixture, settings.n_windows * len(mixture))


def _selected(experiment: Experiment, mixture: Mapping[str, float], n_windows: int) -> Draw:
    calibration = experiment.calibration.model_copy(update={"seed": 0, "allow_repeat": True})
    return Draw(
        calibration=calibration, scenario=matched(), mixture=mixture, part="selection", n_windows=n_windows
    )


DrawOf = Callable[[Experiment], Draw]


def draw_key(draw_of: DrawOf, keys: Keys) -> Key | None:
    """Return the key of a draw; None where the version of its texts is not known."""
    experiment, given = keys.experiment, keys.given
    asked = draw_of(experiment)
    source = _source(asked, experiment)
    if source is None:
        return None
    key: Key = {
        "version": CODE_VERSION,
        "source": source,
        "tokenizer": given["tokenizer"],
        "libraries": {lib: library_version(lib) for lib in ("tokenizers", "transformers")},
        "n_samples": asked.n_windows,
        "seq_len": asked.calibration.seq_len,
        "seed": asked.calibration.seed,
        "apart": asked.calibration.documents == "apart",
        "add_bos": asked.calibration.add_bos,
        "allow_repeat": asked.calibration.allow_repeat,
        "scenario": asked.scenario.model_dump(mode="json", include=set(_DRAWN)),
    }
    if asked.scenario.random_tokens or asked.scenario.noise_rate:
        key["vocab_size"] = _vocab_size(experiment)
    return key


def build_draw(draw_of: DrawOf, cell: CellRun, folder: Path) -> None:
    """Draw a set of a cell and write it."""
    asked, experiment = draw_of(cell.experiment), cell.model.experiment
    _write(asked, experiment, cell.model.tokenizer(), cell.progress, folder)


def load_draw(cell: CellRun, folder: Path) -> CalibrationSet:
    """Read a set of a cell.

    Raises:
        UserError: for tokens that the model does not know.
    """
    drawn = load_calibration_set(folder)
    cell.model.check_ids(int(drawn.tokens.max()), _HOLDER)
    return drawn


def calibration_set(
    experiment: Experiment, tokenizer: Any, cache: StageCache, progress: Progress
) -> tuple[CalibrationSet, bool]:
    """Return the calibration set that an experiment asks for, and whether it was cached.

    Raises:
        UserError: for an unknown domain, one that cannot be fetched, too few tokens, and a scenario that
            leaks an evaluation without protocols.
    """
    return _kept(calibration_draw, experiment, tokenizer, cache, progress)


def reference_set(
    experiment: Experiment, tokenizer: Any, cache: StageCache, progress: Progress
) -> CalibrationSet:
    """Return the set of `reference_draw`.

    Raises:
        UserError: when the selection part is empty.
    """
    return _kept(reference_draw, experiment, tokenizer, cache, progress)[0]


def selection_set(
    experiment: Experiment, tokenizer: Any, cache: StageCache, progress: Progress
) -> CalibrationSet:
    """Return the set of `selection_draw`.

    Raises:
        UserError: for an unknown domain, and when a selection part is empty.
    """
    return _kept(selection_draw, experiment, tokenizer, cache, progress)[0]


def _kept(
    draw_of: DrawOf, experiment: Experiment, tokenizer: Any, cache: StageCache, progress: Progress
) -> tuple[CalibrationSet, bool]:
    asked = draw_of(experiment)
    key = draw_key(draw_of, Keys(experiment, {"tokenizer": fingerprint_tokenizer(tokenizer)}))
    if key is None:
        drawn, cached = _draw(asked, experiment, tokenizer, progress), False
    else:
        entry = cache.get("calibration", key, partial(_write, asked, experiment, tokenizer, progress))
        drawn, cached = load_calibration_set(entry.path), entry.cached
    if (vocab_size := _vocab_size(experiment)) is not None:
        check_ids(int(drawn.tokens.max()), vocab_size, tokenizer, _HOLDER)
    return drawn, cached


def _write(asked: Draw, experiment: Experiment, tokenizer: Any, progress: Progress, folder: Path) -> None:
    save_calibration_set(_draw(asked, experiment, tokenizer, progress), folder)


def _draw(asked: Draw, experiment: Experiment, tokenizer: Any, progress: Progress) -> CalibrationSet:
    request = request_of(
        asked.calibration, asked.scenario, asked.n_windows, tokenizer, _vocab_size(experiment)
    )
    if asked.scenario.random_tokens:
        return draw_without_text(tokenizer, request)
    if asked.scenario.leak:
        return _leaked(experiment, request, tokenizer, progress)
    corpora = [
        (read_corpus(domain, asked.part, asked.calibration, progress), share)
        for domain, share in asked.mixture.items()
    ]
    return draw(corpora, tokenizer, request)


def _leaked(
    experiment: Experiment, request: DrawRequest, tokenizer: Any, progress: Progress
) -> CalibrationSet:
    names = experiment.evaluation.protocols
    if not names:
        raise UserError(
            "scenario.leak=true calibrates on the text of evaluation.protocols, and there is none; "
            "choose an evaluation with a perplexity protocol."
        )
    protocols = [resolve_protocol(name, experiment.data) for name in names]
    texts = [protocol_text(p, experiment, progress) for p in protocols]
    streams = {p.name: protocol_tokens(p, tokenizer, experiment, progress).text_tokens for p in protocols}
    paragraphs = [part for text in texts for part in text.split("\n\n")]
    return draw_evaluation(streams, paragraphs, tokenizer, request)


def _source(asked: Draw, experiment: Experiment) -> Key | None:
    """Return what decides the texts that a set is drawn from, without reading them."""
    if asked.scenario.random_tokens:
        return {"source": "random"}
    if asked.scenario.leak:
        settings = experiment.evaluation
        protocols = [resolve_protocol(name, experiment.data) for name in settings.protocols]
        texts = [text_source(protocol, experiment.data) for protocol in protocols]
        if None in texts:
            return None
        named = [[p.name, p.version, t] for p, t in zip(protocols, texts, strict=True)]
        n_windows, add_bos = experiment.n_windows(), settings.add_bos
        return {"protocols": named, "n_windows": n_windows, "add_bos": add_bos}
    corpora = {d: corpus_source(d, asked.calibration) for d in asked.mixture}
    if None in corpora.values():
        return None
    return {"part": asked.part, "corpora": [[corpora[d], s] for d, s in asked.mixture.items()]}


def _vocab_size(experiment: Experiment) -> int | None:
    """Return how many token ids a model knows; None while it is not on this machine."""
    architecture = inspect_model(experiment.model)
    return None if architecture is None else architecture.vocab_size


def describe_calibration(cell: CellRun) -> dict[str, Any]:
    """Return how the cell's calibration set was drawn and how far it is from others, as JSON."""
    experiment, drawn = cell.experiment, _drawn(cell)
    scenario, evaluation = experiment.scenario, experiment.evaluation
    of_text = not (scenario.random_tokens or scenario.leak)
    scored = (*evaluation.protocols, *evaluation.tasks)
    return {
        "scenario": scenario.name,
        "domain": drawn.domain,
        "mixture": dict(experiment.calibration_mixture) if of_text else None,
        "n_windows_of": dict(drawn.n_windows_of),
        "n_samples": len(drawn.tokens),
        "seq_len": experiment.calibration.seq_len,
        "seed": drawn.seed,
        "n_texts_used": drawn.n_texts_used,
        "sources": [dict(source) for source in drawn.sources],
        "window_start": drawn.window_start,
        "repeated_share": drawn.repeated_share,
        "allow_overlap": list(scenario.allow_overlap),
        "overlap": {name: cell.get(f"overlap {name}") for name in scored},
        "bias_distance": cell.get("bias_distance"),
    }


def calibration_warnings(cell: CellRun) -> tuple[str, ...]:
    """Return what a reader of the numbers must know of the calibration set."""
    drawn, scenario = _drawn(cell), cell.experiment.scenario
    sentences = []
    if scenario.leak:
        sentences.append(
            f"Calibrated on the evaluation's own text on purpose (scenario={scenario.name}): "
            "perplexity on it flatters the method."
        )
    if cell.experiment.adapted_on is not None:
        sentences.append(
            f"The last block was learned on the text of {cell.experiment.adapted_on}, which is scored "
            "(quant.refinement.adapt_on=evaluation): perplexity on it flatters the method."
        )
    if drawn.repeated_share > 0 and (scenario.copies or 1) == 1:
        sentences.append(
            f"{drawn.repeated_share:.0%} of the calibration tokens are from texts that occur a second "
            "time (allow_repeat=true): there were too few."
        )
    empty = [domain for domain, count in drawn.n_windows_of.items() if count == 0]
    if empty:
        sentences.append(
            f"{' and '.join(empty)} gave no window of {len(drawn.tokens)}: its share of the mixture is "
            "too small."
        )
    return tuple(sentences)


def _drawn(cell: CellRun) -> CalibrationSet:
    calibration: CalibrationSet = cell.get("calibration")
    return calibration


def build_statistics(cell: CellRun, folder: Path) -> None:
    """Observe the cell's model in full precision on its calibration set."""
    calibration: CalibrationSet = cell.get("calibration")
    _observe(cell.experiment, cell.model.start(), calibration, cell.progress, folder)


def load_statistics(cell: CellRun, folder: Path) -> ActivationStore:
    """Open what the pass left behind."""
    return ActivationStore(folder, cell.device)


def activation_store(
    experiment: Experiment,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    cache: StageCache,
    progress: Progress,
) -> tuple[ActivationStore, bool]:
    """Return the statistics of a calibration set of a model in hand, and whether they were cached."""
    device = loaded.view.device
    given = {"model": loaded.model_fingerprint, "calibration": calibration.fingerprint}
    build = partial(_observe, experiment, loaded, calibration, progress)
    entry = cache.get("statistics", Keys(experiment, given, device.type).statistics(), build)
    return ActivationStore(entry.path, device), entry.cached


def _observe(
    experiment: Experiment,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    progress: Progress,
    folder: Path,
) -> None:
    observe(
        loaded,
        calibration.tokens,
        batch_size=experiment.calibration.batch_size,
        select=experiment.calibration.tokens,
        folder=folder,
        progress=progress,
    )


_SET, _REFERENCE = "calibration", "calibration reference"
_UNKNOWN = {"reference": None, "token_js": None, "activation_shift": None}


class _StoredDistance(TypedDict):
    token_js: float
    activation_shift: dict[str, float]


def build_distance(cell: CellRun, folder: Path) -> None:
    """Measure the distance of the cell's calibration set from its reference set."""
    drawn: CalibrationSet = cell.get(_SET)
    reference: CalibrationSet = cell.get(_REFERENCE)
    shift = activation_shift(cell.get("means drawn"), cell.get("means reference"))
    distances = {"token_js": token_divergence(drawn.tokens, reference.tokens), "activation_shift": shift}
    (folder / "distance.json").write_text(json.dumps(distances))


def load_distance(cell: CellRun, folder: Path) -> dict[str, Any]:
    """Read the distance, as a record says it."""
    distance = read_as(folder / "distance.json", _StoredDistance)
    reference: CalibrationSet = cell.get(_REFERENCE)
    named = f"{len(reference.tokens)} windows of the selection part of {reference.domain}"
    return {"reference": named, **distance}


def no_distance(reason: str) -> dict[str, Any]:
    """Return what a record says where there is no reference set."""
    return _UNKNOWN | {"reason": f"there is no reference set: {reason}"}


def build_drawn_means(cell: CellRun, folder: Path) -> None:
    """Take mean|x| on the calibration set from its statistics, or by a pass of its own."""
    there = _statistics(cell)
    if there is None:
        _observe_means(cell, _SET, folder)
    else:
        copy_means(there, folder)


def _statistics(cell: CellRun) -> Path | None:
    """Return where the statistics of the model as loaded are; None where no method searched in them."""
    if not cell.experiment.method["rotate"].is_idle:  # its statistics are in another basis
        return None
    if "statistics" in cell.stages:
        cell.get("statistics")
        return cell.entry("statistics")
    key = cell.keys.statistics()
    return cell.cache.find("statistics", key)


def build_reference_means(cell: CellRun, folder: Path) -> None:
    """Take mean|x| on the reference set."""
    _observe_means(cell, _REFERENCE, folder)


def load_means(cell: CellRun, folder: Path) -> dict[str, list[Tensor]]:
    """Read mean|x| by role, of every block in turn."""
    return read_means(folder, cell.model.architecture().n_blocks)


def _observe_means(cell: CellRun, tokens: str, folder: Path) -> None:
    calibration: CalibrationSet = cell.get(tokens)
    settings = cell.experiment.calibration
    observe_means(
        cell.model.pristine(),
        calibration.tokens,
        batch_size=settings.batch_size,
        select=settings.tokens,
        folder=folder,
        progress=cell.progress,
    )
