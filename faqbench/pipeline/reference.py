"""The cached stage that quantized models are compared with: the full precision model's hidden states.

The stage runs once per weights, tokens and dtype; every other cell of a sweep finds it in the cache, and
the baseline takes its own perplexity from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faqbench.config import Experiment
from faqbench.evaluation import (
    HiddenWriter,
    ProtocolTokens,
)
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import reference_key
from faqbench.pipeline.memory import PeakMemory
from faqbench.pipeline.token_scores import write_scores
from faqbench.pipeline.windows import protocol_windows
from faqbench.stages import CacheEntry, Progress, StageCache


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The full precision model on one protocol.

    Attributes:
        windows: the protocol's tokens.
        entry: the stage's folder, with `nll.npy` and what `HiddenStates.open` reads.
    """

    windows: ProtocolTokens
    entry: CacheEntry


def reference_scores(
    experiment: Experiment,
    model: CellModel,
    memory: PeakMemory,
    cache: StageCache,
    progress: Progress,
) -> dict[str, Reference]:
    """Return the full precision model's scores and hidden states per protocol.

    Args:
        experiment: what to evaluate.
        model: the cell's.
        memory: of the run.
        cache: where the stage is kept and found.
        progress: told of the stage.

    Raises:
        UserError: for a protocol whose text or windows cannot be had.
    """
    references = {}
    for name in experiment.evaluation.protocols:
        windows = protocol_windows(name, experiment, model, cache, progress)
        build = partial(_write, windows, model, experiment, memory, progress)
        found = {**model.fingerprints, f"protocol/{name}": windows.fingerprint}
        key = reference_key(experiment, found, name, model.device.type)
        entry = cache.get("reference", key, build, name)
        references[name] = Reference(windows=windows, entry=entry)
    return references


def _write(
    windows: ProtocolTokens,
    model: CellModel,
    experiment: Experiment,
    memory: PeakMemory,
    progress: Progress,
    folder: Path,
) -> None:
    title = f"{windows.protocol.name}: full precision"
    budget = experiment.evaluation.batch_tokens
    with HiddenWriter(folder, windows.protocol.seq_len) as keep:
        write_scores(
            folder, model.full_precision, windows, budget, memory, progress, title, keep=keep
        )
