"""Peaks of memory: a section's own, and the run's over all sections."""

from pathlib import Path

import numpy as np
import pytest
import torch

from faqbench.pipeline.environment import PeakMemory

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
SIZE = 200 * 2**20


def touch() -> None:
    np.ones(SIZE, dtype=np.uint8).sum()


def test_a_sections_peak_is_its_own_and_the_runs_is_kept():
    memory = PeakMemory(torch.device("cpu"))
    touch()
    before = memory.bytes
    with memory.section() as quiet:
        pass
    with memory.section() as loud:
        touch()
    assert quiet.bytes < before - SIZE // 2
    assert loud.bytes > quiet.bytes + SIZE // 2
    assert memory.bytes >= max(before, loud.bytes)
