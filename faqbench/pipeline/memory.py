"""The peak of memory over a run, and over sections of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from faqbench.pipeline.environment import peak_memory_bytes, start_peak_memory


@dataclass
class Section:
    """A stretch of a run; `bytes` is its peak once it is over."""

    bytes: int = 0


class PeakMemory:
    """Reads the peak of each section without losing that of the run.

    The system keeps one high-water mark, which a section sets back; what it stood at before is kept
    here. Where it cannot be set back, a section's peak is the process's own.

    Attributes:
        device: whose memory is measured; for the CPU, the process's resident set.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0
        start_peak_memory(device)

    @contextmanager
    def section(self) -> Iterator[Section]:
        """Measure what runs inside."""
        section = Section()
        self._before = self.bytes
        start_peak_memory(self.device)
        yield section
        section.bytes = peak_memory_bytes(self.device)

    @property
    def bytes(self) -> int:
        """The peak of the run so far, its sections included."""
        return max(self._before, peak_memory_bytes(self.device))
