"""The cached stage that draws calibration sets, and the reference set that their bias is measured from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faqbench.calibration import (
    CODE_VERSION,
    CalibrationSet,
    Request,
    draw,
    draw_evaluation,
    draw_without_text,
    load_calibration_set,
    request_of,
    save_calibration_set,
)
from faqbench.config import Experiment, UserError
from faqbench.config.calibration import matched, mixture_of
from faqbench.corpora import Corpus, Part, read_corpus
from faqbench.evaluation import protocol_tokens, resolve_protocol
from faqbench.evaluation.texts import protocol_text
from faqbench.models import check_ids, fingerprint_tokenizer, inspect_model
from faqbench.stages import Progress, StageCache, hash_text, library_version

# What a scenario changes of the windows themselves; the rest chooses corpora and their number.
_DRAWN = (
    "min_characters", "max_characters", "length_power", "rarity", "copies", "shuffle_tokens",
    "noise_rate",
)  # fmt: skip


def calibration_set(
    experiment: Experiment, tokenizer: Any, cache: StageCache, progress: Progress
) -> tuple[CalibrationSet, bool]:
    """Return the calibration set that an experiment asks for, and whether it was cached.

    Raises:
        UserError: for an unknown domain, one that cannot be fetched, too few tokens, and a scenario that
            leaks an evaluation without protocols.
    """
    scenario = experiment.scenario
    request = request_of(
        experiment.calibration,
        scenario,
        experiment.n_calibration_samples,
        tokenizer,
        _vocab_size(experiment),
    )
    if scenario.random_tokens:
        return _cached(
            {"source": "random"},
            request,
            tokenizer,
            cache,
            lambda: draw_without_text(tokenizer, request),
        )
    if scenario.leak:
        return _leaked(experiment, request, tokenizer, cache, progress)
    corpora = _corpora(experiment, experiment.calibration_mixture, "calibration", progress)
    return _drawn(corpora, request, tokenizer, cache)


def reference_set(
    experiment: Experiment, tokenizer: Any, cache: StageCache, progress: Progress
) -> CalibrationSet:
    """Return the set that the bias of an experiment's calibration set is measured from.

    It is what `calibration` describes without the scenario, `n_reference` windows of it, from the
    selection part, with seed 0: no text of it is in any calibration set, so that an unbiased draw shows
    the distance that chance alone makes, and all draws and scenarios are measured from one point.

    Raises:
        UserError: when the selection part is empty.
    """
    mixture = mixture_of(experiment.calibration, matched())
    n_windows = experiment.calibration.n_reference
    return _selected(experiment, mixture, n_windows, tokenizer, cache, progress)


def selection_set(
    experiment: Experiment, tokenizer: Any, cache: StageCache, progress: Progress
) -> CalibrationSet:
    """Return the selection text that a presearch judges by: `n_windows` from each of its domains.

    Raises:
        UserError: for an unknown domain, and when a selection part is empty.
    """
    settings = experiment.presearch
    mixture = mixture_of(experiment.calibration, matched())
    if settings.domains is not None:
        mixture = dict.fromkeys(settings.domains, 1.0 / len(settings.domains))
    n_windows = settings.n_windows * len(mixture)
    return _selected(experiment, mixture, n_windows, tokenizer, cache, progress)


def _selected(
    experiment: Experiment,
    mixture: Mapping[str, float],
    n_windows: int,
    tokenizer: Any,
    cache: StageCache,
    progress: Progress,
) -> CalibrationSet:
    calibration = experiment.calibration.model_copy(update={"seed": 0, "allow_repeat": True})
    request = request_of(calibration, matched(), n_windows, tokenizer, _vocab_size(experiment))
    corpora = _corpora(experiment, mixture, "selection", progress)
    return _drawn(corpora, request, tokenizer, cache)[0]


def _vocab_size(experiment: Experiment) -> int | None:
    """Return how many token ids a model knows; None while it is not on this machine."""
    architecture = inspect_model(experiment.model)
    return None if architecture is None else architecture.vocab_size


def _corpora(
    experiment: Experiment, mixture: Mapping[str, float], part: Part, progress: Progress
) -> list[tuple[Corpus, float]]:
    return [
        (read_corpus(domain, part, experiment.calibration, progress), share)
        for domain, share in mixture.items()
    ]


def _drawn(
    corpora: list[tuple[Corpus, float]], request: Request, tokenizer: Any, cache: StageCache
) -> tuple[CalibrationSet, bool]:
    source = {"corpora": [[corpus.provenance(), share] for corpus, share in corpora]}
    return _cached(source, request, tokenizer, cache, lambda: draw(corpora, tokenizer, request))


def _leaked(
    experiment: Experiment,
    request: Request,
    tokenizer: Any,
    cache: StageCache,
    progress: Progress,
) -> tuple[CalibrationSet, bool]:
    names = experiment.evaluation.protocols
    if not names:
        raise UserError(
            "scenario.leak=true calibrates on the text of evaluation.protocols, and there is none; "
            "choose an evaluation with a perplexity protocol."
        )
    protocols = [resolve_protocol(name, experiment) for name in names]
    texts = {p.name: protocol_text(p, experiment, progress) for p in protocols}

    def make() -> CalibrationSet:
        streams = {
            p.name: protocol_tokens(p, tokenizer, experiment, progress).text_tokens
            for p in protocols
        }
        paragraphs = [part for text in texts.values() for part in text.split("\n\n")]
        return draw_evaluation(streams, paragraphs, tokenizer, request)

    settings = experiment.evaluation
    source: dict[str, object] = {
        "protocols": [[p.name, p.version, hash_text(texts[p.name])] for p in protocols],
        "n_windows": experiment.n_windows(),
        "add_bos": settings.add_bos,
    }
    return _cached(source, request, tokenizer, cache, make)


def _cached(
    source: Mapping[str, object],
    request: Request,
    tokenizer: Any,
    cache: StageCache,
    make: Callable[[], CalibrationSet],
) -> tuple[CalibrationSet, bool]:
    def build(folder: Path) -> None:
        save_calibration_set(make(), folder)

    key: dict[str, object] = {
        "version": CODE_VERSION,
        "source": source,
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "libraries": {lib: library_version(lib) for lib in ("tokenizers", "transformers")},
        "n_samples": request.n_samples,
        "seq_len": request.seq_len,
        "seed": request.seed,
        "apart": request.apart,
        "bos": request.bos,
        "allow_repeat": request.allow_repeat,
        "scenario": request.scenario.model_dump(mode="json", include=set(_DRAWN)),
    }
    if request.scenario.random_tokens or request.scenario.noise_rate:
        key["vocab_size"] = request.vocab_size
    entry = cache.get("calibration", key, build)
    found = load_calibration_set(entry.path)
    if request.vocab_size is not None:
        largest = int(found.tokens.max())
        check_ids(largest, request.vocab_size, tokenizer, "The calibration set")
    return found, entry.cached
