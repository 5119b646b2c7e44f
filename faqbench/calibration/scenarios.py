"""Bias scenarios: what may be wrong with a calibration set, each as a pure function with a number.

A scenario is one yaml in `conf/scenario/` that sets some fields of `config.calibration.ScenarioSection`;
fields compose, and so do scenarios with any corpus and any method. Where each field acts:

    domain, mixture, skew       which corpora give which share of the windows (`config.calibration`)
    n_samples                   how many windows
    min_, max_characters        draw_texts: which texts are drawn at all
    length_power, rarity        draw_texts: which texts are drawn first
    copies                      draw_texts: every drawn text occurs several times
    shuffle_tokens, noise_rate  change_tokens: what happens to a window's tokens
    random_tokens               draw_random_tokens: there is no text
    leak                        the windows are the evaluation's own (`pipeline.calibrating`)

To add a scenario made of these, write its yaml. To add a field: a function of texts or of tokens and a
generator of its own here, a line where the others are applied, the field
in `ScenarioSection` and in `conf/scenario/matched.yaml`, where null or false leaves things alone, and its
name in `config.identity.calibration_identity`. Each field draws from a generator of its own, so adding
one moves no other.

Weighted drawing without replacement follows Efraimidis and Spirakis 2006: with E_i exponential, the texts
in the order of E_i / w_i are drawn one by one with probabilities proportional to their weights w_i among
those that remain. Weights are kept as logarithms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faqbench.config import UserError
from faqbench.config.calibration import ScenarioSection

Encode = Callable[[str], list[int]]
_COPIES_STREAM = 2  # tells the generator of a field from that of the plain draw


@dataclass(frozen=True, kw_only=True)
class DrawnTexts:
    """Texts in the order of their tokens.

    Attributes:
        ids: token ids of each text in turn, repetitions included.
        texts: the texts that contribute to the first `n_needed` tokens, each once.
        n_tokens: of all ids together; less than were needed when there was not enough.
        n_repeated: among the first `n_needed` tokens, those of a text's second or later occurrence.
    """

    ids: tuple[list[int], ...]
    texts: tuple[str, ...]
    n_tokens: int
    n_repeated: int


def draw_texts(
    texts: Sequence[str],
    encode: Encode,
    scenario: ScenarioSection,
    *,
    seed: int,
    n_needed: int,
    least: int,
    most: int | None,
    allow_repeat: bool,
) -> DrawnTexts:
    """Draw texts until they have n_needed tokens, or none is left.

    Args:
        texts: unique.
        encode: from a text to its token ids.
        scenario: which texts, in which order, how many times.
        seed: of the order.
        n_needed: tokens.
        least: texts of fewer tokens are passed over.
        most: only so many tokens of a text are used; None for all.
        allow_repeat: whether texts may be drawn again when all have been.

    Raises:
        UserError: when the scenario's lengths leave no text.
    """
    kept = of_length(texts, scenario)
    known: dict[int, list[int]] = {}

    def ids_of(index: int) -> list[int]:
        if index not in known:
            known[index] = encode(kept[index])
        return known[index]

    log_weights = _log_weights(kept, ids_of, scenario)
    rng = np.random.Generator(np.random.PCG64(seed))
    copies, chosen, n_tokens = scenario.copies or 1, [], 0
    n_rounds = 0
    while n_tokens * copies < n_needed and (n_rounds == 0 or (allow_repeat and n_tokens > 0)):
        for index in draw_order(len(kept), log_weights, rng):
            if n_tokens * copies >= n_needed:
                break
            n_ids = len(ids_of(index)[:most])
            if n_ids >= least:
                chosen.append(index)
                n_tokens += n_ids
        n_rounds += 1
    if copies > 1:
        shuffle = np.random.Generator(np.random.PCG64([seed, _COPIES_STREAM]))
        chosen = shuffle.permutation(np.repeat(chosen, copies)).tolist()
    return _collect(kept, [(i, ids_of(i)[:most]) for i in chosen], n_needed)


def of_length(texts: Sequence[str], scenario: ScenarioSection) -> list[str]:
    """Return the texts whose number of characters the scenario allows.

    Raises:
        UserError: when none is left.
    """
    low, high = scenario.min_characters or 0, scenario.max_characters or float("inf")
    kept = [text for text in texts if low <= len(text) <= high]
    if not kept:
        raise UserError(
            f"scenario={scenario.name} leaves none of {len(texts)} texts: none has {low:g} to {high:g} "
            "characters; change scenario.min_characters or scenario.max_characters."
        )
    return kept


def draw_order(n: int, log_weights: NDArray[np.float64] | None, rng: np.random.Generator) -> list[int]:
    """Return 0 ... n-1 in a drawn order: uniform, or by weight without replacement."""
    if log_weights is None:
        return list(rng.permutation(n).tolist())
    return list(np.argsort(np.log(rng.exponential(size=n)) - log_weights, kind="stable").tolist())


def rarity_of(ids: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the mean of -log2 p(token) over each text's tokens, p over all the texts together."""
    counts = Counter(i for text in ids for i in text)
    total = sum(counts.values())
    bits = {token: -np.log2(count / total) for token, count in counts.items()}
    return np.array([np.mean([bits[i] for i in text]) if len(text) else 0.0 for text in ids])


def _log_weights(
    texts: Sequence[str], ids_of: Callable[[int], list[int]], scenario: ScenarioSection
) -> NDArray[np.float64] | None:
    """Return the logarithms of the weights that texts are drawn with; None when all are equal."""
    result: NDArray[np.float64] | None = None
    if scenario.length_power:
        lengths = np.array([len(text) for text in texts], dtype=np.float64)
        result = scenario.length_power * np.log(lengths)
    if scenario.rarity:
        rarity = rarity_of([ids_of(i) for i in range(len(texts))])
        spread = float(rarity.std()) or 1.0
        weights = scenario.rarity * (rarity - rarity.mean()) / spread
        result = weights if result is None else result + weights
    return result


def _collect(texts: Sequence[str], chosen: Sequence[tuple[int, list[int]]], n_needed: int) -> DrawnTexts:
    seen: dict[int, None] = {}
    n_tokens = n_repeated = 0
    for index, ids in chosen:
        used = min(len(ids), max(0, n_needed - n_tokens))
        n_repeated += used if index in seen else 0
        if used:
            seen.setdefault(index)
        n_tokens += len(ids)
    return DrawnTexts(
        ids=tuple(ids for _, ids in chosen),
        texts=tuple(texts[index] for index in seen),
        n_tokens=n_tokens,
        n_repeated=n_repeated,
    )


Tokens = NDArray[np.int64]
# Each field has a generator of its own, PCG64([seed, stream]).
_RANDOM, _SHUFFLE, _NOISE = 3, 4, 5


def change_tokens(windows: Tokens, scenario: ScenarioSection, vocabulary: Tokens, seed: int) -> Tokens:
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


def inject_noise(windows: Tokens, rate: float, vocabulary: Tokens, rng: np.random.Generator) -> Tokens:
    """Return windows in which every token is replaced by a random one with probability `rate`."""
    hit = rng.random(windows.shape) < rate
    return np.where(hit, vocabulary[rng.integers(len(vocabulary), size=windows.shape)], windows)


def draw_random_tokens(vocabulary: Tokens, shape: tuple[int, int], seed: int) -> Tokens:
    """Return tokens [n, width] drawn uniformly from the vocabulary."""
    return vocabulary[_generator(seed, _RANDOM).integers(len(vocabulary), size=shape)]


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, stream]))
