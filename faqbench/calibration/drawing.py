r"""Drawing token windows for calibration.

The scheme is that of GPTQ's and AWQ's reference code on a concatenated corpus, made reproducible:

    shuffle the texts with PCG64(seed)        no global random state
    tokenise each text followed by "\n\n"     no special tokens; only as many texts as are needed
    concatenate, cut into n_samples windows   window i is tokens [i * seq_len, (i + 1) * seq_len)

Windows therefore begin in mid-document, without a beginning-of-sequence token, and may span several
texts. Equal texts, tokenizer, sizes and seed give equal tokens, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from faqbench.config import Experiment, UserError
from faqbench.corpora import domain_texts
from faqbench.stages import Progress

SEPARATOR = "\n\n"


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Any]:
        """Return a mapping whose `input_ids` are the text's token ids."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationSet:
    """The tokens that a quantizer sees, and where they come from.

    Attributes:
        tokens: int64, [n_samples, seq_len].
        domain: the domain's name, or the path of the user's file.
        seed: of the shuffle.
        n_texts_used: texts that contributed tokens, the last one perhaps in part.
        window_start: "cut": windows begin in mid-document.
        fingerprint: sha256 of the shape and the tokens; two sets are the same when it is.
    """

    tokens: torch.Tensor
    domain: str
    seed: int
    n_texts_used: int
    window_start: str
    fingerprint: str


def draw(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    n_samples: int,
    seq_len: int,
    seed: int,
    domain: str,
) -> CalibrationSet:
    """Draw n_samples windows of seq_len tokens from the texts.

    Raises:
        UserError: when all texts together have fewer than n_samples * seq_len tokens.
    """
    n_needed = n_samples * seq_len
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(texts))
    ids: list[int] = []
    n_texts_used = 0
    for index in order:
        if len(ids) >= n_needed:
            break
        # verbose=False: a text longer than the model's context is no mistake here.
        encoded = tokenizer(texts[index] + SEPARATOR, add_special_tokens=False, verbose=False)
        ids.extend(encoded["input_ids"])
        n_texts_used += 1
    if len(ids) < n_needed:
        raise UserError(
            f"The calibration part of '{domain}' has {len(ids)} tokens, but n_samples * seq_len = "
            f"{n_samples} * {seq_len} = {n_needed} are needed; lower calibration.n_samples or "
            "calibration.seq_len, or use a domain of more text."
        )
    tokens = torch.tensor(ids[:n_needed], dtype=torch.int64).reshape(n_samples, seq_len)
    return CalibrationSet(
        tokens=tokens,
        domain=domain,
        seed=seed,
        n_texts_used=n_texts_used,
        window_start="cut",
        fingerprint=_fingerprint(tokens),
    )


def calibration_tokens(
    experiment: Experiment, tokenizer: Tokenizer, progress: Progress
) -> CalibrationSet:
    """Draw the calibration set that an experiment asks for, its scenario included.

    Raises:
        UserError: for an unknown domain, one that cannot be fetched, and one with too few tokens.
    """
    domain = experiment.calibration_domain
    return draw(
        domain_texts(domain, "calibration", progress),
        tokenizer,
        n_samples=experiment.n_calibration_samples,
        seq_len=experiment.calibration.seq_len,
        seed=experiment.calibration.seed,
        domain=domain,
    )


def _fingerprint(tokens: torch.Tensor) -> str:
    """Hash the shape and the little-endian int64 values, so that any machine gets the same."""
    digest = hashlib.sha256(f"{tuple(tokens.shape)}".encode())
    digest.update(tokens.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()
