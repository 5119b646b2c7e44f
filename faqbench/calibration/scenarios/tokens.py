"""Scenarios that change a window's tokens, or draw them without any text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faqbench.config.calibration import ScenarioSection

Tokens = NDArray[np.int64]
# Each field has a generator of its own, PCG64([seed, stream]).
_RANDOM, _SHUFFLE, _NOISE = 3, 4, 5


def change_tokens(
    windows: Tokens, scenario: ScenarioSection, vocabulary: Tokens, seed: int
) -> Tokens:
    """Return windows [n, width] with the scenario's changes, in the order shuffle, noise.

    Args:
        windows: token ids, without BOS.
        scenario: the changes.
        vocabulary: ids that noise may be made of; read only when there is noise.
        seed: of the draw.
    """
    if scenario.shuffle_tokens:
        windows = shuffle_windows(windows, _generator(seed, _SHUFFLE))
    if scenario.noise_rate:
        rng = _generator(seed, _NOISE)
        windows = inject_noise(windows, scenario.noise_rate, vocabulary, rng)
    return windows


def shuffle_windows(windows: Tokens, rng: np.random.Generator) -> Tokens:
    """Return each window's tokens in a random order: the same tokens, no language."""
    return rng.permuted(windows, axis=1)


def inject_noise(
    windows: Tokens, rate: float, vocabulary: Tokens, rng: np.random.Generator
) -> Tokens:
    """Return windows in which every token is replaced by a random one with probability `rate`."""
    hit = rng.random(windows.shape) < rate
    return np.where(hit, vocabulary[rng.integers(len(vocabulary), size=windows.shape)], windows)


def draw_random_tokens(vocabulary: Tokens, shape: tuple[int, int], seed: int) -> Tokens:
    """Return tokens [n, width] drawn uniformly from the vocabulary."""
    return vocabulary[_generator(seed, _RANDOM).integers(len(vocabulary), size=shape)]


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, stream]))
