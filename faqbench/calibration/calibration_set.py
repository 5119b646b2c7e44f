"""A calibration set: its draw's request, a value, files of a cached stage; how far it is from another.

Legend: p, q token distributions of the two sets; a_b, r_b [in] mean|x| per channel of one role's input
in block b, on the calibration set and on the reference set.

    token_js = H((p + q) / 2) - (H(p) + H(q)) / 2               entropies H in bits

the Jensen-Shannon divergence of the token frequencies: 0 for equal ones, 1 for sets without a token in
common. It is that of two samples: two draws of one domain are not at 0 but at a floor that falls with
their sizes, which is why matched draws are measured too and never taken to be at 0.

    l_b = log(a_b / r_b)
    activation_shift = mean over blocks of sqrt(mean over channels of (l_b - mean(l_b))^2)

the spread over channels of the log ratio. A factor common to all channels drops out, as it does from the
scales of AWQ and FAQ, which are powers of a normalised by their own extremes; what remains is by how much
a typical channel's scale moves against the others: 0.1 is about 10 %, whatever the channel's own size, so
a few massive channels do not speak for all. Channels that are silent on either set are left out, and so
is a role of which no channel remains.

Reference: Lin 1991 (Jensen-Shannon divergence). The activation shift is ours.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from faqbench.config.calibration import CalibrationSection, ScenarioSection
from faqbench.foreign import read_as
from faqbench.models import bos_of


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """How many windows of what size, and how they are drawn.

    Attributes:
        n_samples: windows.
        seq_len: tokens of a window, a BOS token included.
        seed: of everything that is drawn.
        apart: whether each window is a document of its own.
        bos: the id of the token that every window begins with, or None.
        allow_repeat: whether texts may be used again when there are too few.
        scenario: the departures from a plain draw.
        vocab_size: the ids that the model knows, which random tokens are drawn from; None for all of the
            tokenizer's.
    """

    n_samples: int
    seq_len: int
    seed: int
    apart: bool
    bos: int | None
    allow_repeat: bool
    scenario: ScenarioSection
    vocab_size: int | None = None

    @property
    def width(self) -> int:
        """Tokens of text in a window."""
        return self.seq_len - (self.bos is not None)

    def size_of(self, n_windows: int) -> str:
        """Return the tokens of text in so many windows in words, as an error explains them."""
        spelled = "seq_len" if self.bos is None else "(seq_len - 1)"
        return f"n_samples * {spelled} = {n_windows} * {self.width} = {n_windows * self.width}"


def request_of(
    calibration: CalibrationSection,
    scenario: ScenarioSection,
    n_samples: int,
    tokenizer: Any,
    vocab_size: int | None = None,
) -> DrawRequest:
    """Return what a configuration asks for of a model with so many token ids.

    Raises:
        UserError: when a BOS token is asked for and the tokenizer has none.
    """
    bos = bos_of(tokenizer, "calibration.add_bos") if calibration.add_bos else None
    return DrawRequest(
        n_samples=n_samples,
        seq_len=calibration.seq_len,
        seed=calibration.seed,
        apart=calibration.documents == "apart",
        bos=bos,
        allow_repeat=calibration.allow_repeat,
        scenario=scenario,
        vocab_size=vocab_size,
    )


_FACTS = (
    "domain",
    "n_windows_of",
    "seed",
    "n_texts_used",
    "window_start",
    "repeated_share",
    "sources",
    "fingerprint",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationSet:
    """The tokens that a quantizer sees, and where they come from.

    Attributes:
        tokens: int64, [n_samples, seq_len].
        domain: the domain, or the mixture in words, as in "wiki 0.7 + code 0.3".
        n_windows_of: how many windows each domain gave.
        seed: of the draw.
        n_texts_used: texts that contributed tokens, the last one perhaps in part.
        window_start: "cut": windows begin in mid-document; "document": at a document's beginning;
            "bos+cut", "bos+document": the same after a BOS token; "none": there are no documents.
        repeated_share: share of the tokens that are from a text's second or later occurrence.
        sources: provenance of each domain, as JSON mappings.
        texts: those that contributed, each once; for a leak guard.
        fingerprint: sha256 of the shape and the tokens; two sets are the same when it is.
    """

    tokens: torch.Tensor
    domain: str
    n_windows_of: Mapping[str, int]
    seed: int
    n_texts_used: int
    window_start: str
    repeated_share: float
    sources: tuple[Mapping[str, Any], ...]
    texts: tuple[str, ...]
    fingerprint: str


def fingerprint_tokens(tokens: torch.Tensor) -> str:
    """Hash the shape and the little-endian int64 values, so that any machine gets the same."""
    digest = hashlib.sha256(f"{tuple(tokens.shape)}".encode())
    digest.update(tokens.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def save_calibration_set(calibration: CalibrationSet, folder: Path) -> None:
    """Write a calibration set into an empty folder."""
    save_file({"tokens": calibration.tokens.contiguous()}, folder / "tokens.safetensors")
    facts = {name: getattr(calibration, name) for name in _FACTS}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))
    (folder / "texts.json").write_text(json.dumps(calibration.texts))


def load_calibration_set(folder: Path) -> CalibrationSet:
    """Read what `save_calibration_set` wrote."""
    facts = read_as(folder / "facts.json", dict[str, Any])
    return CalibrationSet(
        tokens=load_file(folder / "tokens.safetensors")["tokens"],
        texts=read_as(folder / "texts.json", tuple[str, ...]),
        **facts | {"sources": tuple(facts["sources"])},
    )


Means = Mapping[str, Sequence[Tensor]]


def token_divergence(tokens: Tensor, reference: Tensor) -> float:
    """Return the Jensen-Shannon divergence of two sets' token frequencies, in bits, in [0, 1].

    Args:
        tokens: token ids of any shape.
        reference: the same of the reference set.
    """
    size = int(max(tokens.max(), reference.max())) + 1
    p, q = (np.bincount(t.flatten().numpy(), minlength=size) for t in (tokens, reference))
    p, q = p / p.sum(), q / q.sum()
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    return min(1.0, max(0.0, divergence))


def activation_shift(means: Means, reference: Means) -> dict[str, float]:
    """Return the shift of each role's channels against the reference set, silent roles left out.

    Args:
        means: by role, mean|x| [in_features] of every block in turn.
        reference: the same of the reference set.
    """
    shifts = {}
    for role, blocks in means.items():
        spreads = [_spread(a, r) for a, r in zip(blocks, reference[role], strict=True)]
        measured = [spread for spread in spreads if not math.isnan(spread)]
        if measured:
            shifts[role] = sum(measured) / len(measured)
    return shifts


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _spread(means: Tensor, reference: Tensor) -> float:
    """Return the spread over channels of the log ratio; NaN when no channel is active on both sets."""
    a, r = means.double().numpy(), reference.double().numpy()
    active = (a > 0) & (r > 0)
    return float(np.log(a[active] / r[active]).std()) if active.any() else math.nan
