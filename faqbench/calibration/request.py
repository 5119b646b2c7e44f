"""What is asked of a draw: how many windows of what size, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from faqbench.config.calibration import CalibrationSection, ScenarioSection
from faqbench.models import bos_of


@dataclass(frozen=True, kw_only=True)
class Request:
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
) -> Request:
    """Return what a configuration asks for of a model with so many token ids.

    Raises:
        UserError: when a BOS token is asked for and the tokenizer has none.
    """
    bos = bos_of(tokenizer, "calibration.add_bos") if calibration.add_bos else None
    return Request(
        n_samples=n_samples,
        seq_len=calibration.seq_len,
        seed=calibration.seed,
        apart=calibration.documents == "apart",
        bos=bos,
        allow_repeat=calibration.allow_repeat,
        scenario=scenario,
        vocab_size=vocab_size,
    )
