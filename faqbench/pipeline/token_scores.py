"""A protocol's token scores as files of a stage: `nll.npy`, `kl.npy`, `agrees.npy` and `facts.json`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from faqbench.evaluation import (
    HiddenStates,
    HiddenWriter,
    ProtocolTokens,
    TokenScores,
    score_tokens,
)
from faqbench.models import Model
from faqbench.pipeline.memory import PeakMemory
from faqbench.stages import Progress


def write_scores(
    folder: Path,
    model: Model,
    windows: ProtocolTokens,
    batch_tokens: int,
    memory: PeakMemory,
    progress: Progress,
    title: str,
    *,
    reference: HiddenStates | None = None,
    keep: HiddenWriter | None = None,
) -> None:
    """Score a protocol's windows and write the scores, and what they cost, into a stage's folder."""
    start = time.perf_counter()
    with memory.section() as section:
        scores = score_tokens(
            model.fill().module,
            windows.tokens,
            batch_tokens,
            progress,
            title,
            reference=reference,
            keep=keep,
            view=model,
        )
    seconds = time.perf_counter() - start
    for name, array in (("nll", scores.nll), ("kl", scores.kl), ("agrees", scores.agrees)):
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    facts = {
        "seconds": round(seconds, 3),
        "tokens_per_second": round(windows.tokens.numel() / seconds, 1),
        "peak_memory_bytes": section.bytes,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def read_scores(folder: Path) -> tuple[TokenScores, dict[str, Any]]:
    """Return what `write_scores` left: the scores, and seconds, tokens per second and peak memory."""

    def array(name: str) -> Any:
        path = folder / f"{name}.npy"
        return np.load(path, allow_pickle=False) if path.is_file() else None

    scores = TokenScores(nll=array("nll"), kl=array("kl"), agrees=array("agrees"))
    return scores, json.loads((folder / "facts.json").read_text())
