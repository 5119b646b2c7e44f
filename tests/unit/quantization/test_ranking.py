"""Ranking on samples of rows: whoever may win stays, however unequal the rows are."""

import numpy as np
import pytest
import torch

from faqbench.quantization.ranking import contenders, first_smallest

MARGIN = 0.003


class Table:
    """A table of losses [candidates, rows] that counts what is read of it."""

    def __init__(self, losses):
        self.losses = torch.as_tensor(losses, dtype=torch.float64)
        self.n_read = 0

    def __len__(self):
        return self.losses.shape[1]

    def __call__(self, candidates, rows):
        self.n_read += len(candidates) * len(rows)
        return self.losses[torch.tensor(candidates)][:, rows]

    def ranked(self, first=0, n_samples=6):
        return contenders(self, len(self.losses), first=first, margin=MARGIN, n_samples=n_samples)

    def winners(self):
        totals = self.losses.sum(dim=1)
        return [i for i, total in enumerate(totals) if total <= totals.min() * (1 + MARGIN)]


def unequal_rows(seed, tail, n_candidates=20, n_rows=600):
    """Losses whose rows differ by a heavy-tailed factor of their own, and candidates by a few per cent."""
    generator = np.random.default_rng(seed)
    rows = generator.pareto(tail, n_rows) + 0.1
    candidates = 1 + 0.04 * np.abs(np.arange(n_candidates) - generator.uniform(0, n_candidates))
    noise = generator.lognormal(0, 0.15, (n_candidates, n_rows))
    return Table(candidates[:, None] * rows * noise)


@pytest.mark.parametrize("tail", [0.8, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(20))
def test_whoever_may_win_stays(seed, tail):
    table = unequal_rows(seed, tail)
    kept = table.ranked(first=seed % 20)
    assert set(table.winners()) <= set(kept)
    assert kept == sorted(kept)


def test_most_losses_are_not_taken_in_full():
    table = unequal_rows(0, 4.0)
    table.ranked(first=8)
    assert table.n_read < table.losses.numel() / 2


@pytest.mark.parametrize("row", range(0, 600, 37))
def test_a_candidate_that_wins_by_a_single_row_stays(row):
    """On all rows but one it loses clearly; a sample that misses that row would rule it out."""
    losses = torch.ones(3, 600, dtype=torch.float64)
    losses[1] = 1.2
    losses[:, row] = torch.tensor([500.0, 100.0, 500.0])
    assert Table(losses).ranked() == [1]


def test_the_heavy_row_may_be_that_of_a_later_leader():
    """The first candidate is light where the second one, best on the sampled rows, is heavy."""
    losses = torch.ones(3, 600, dtype=torch.float64) * torch.tensor([[1.5], [1.0], [1.3]])
    losses[1, 321] = 400.0
    assert Table(losses).ranked() == [2]


def test_one_sample_takes_everything():
    table = unequal_rows(3, 1.5)
    assert table.ranked(n_samples=1) == table.winners()


def test_a_candidate_without_a_loss_stays():
    losses = torch.ones(4, 600, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    losses[2, ::50] = torch.nan
    assert Table(losses).ranked() == [0, 2]
    assert Table(torch.full((4, 600), torch.nan)).ranked() == [0, 1, 2, 3]


def test_the_first_of_equals_is_smallest_and_nan_never():
    assert first_smallest([2.0, 1.0, 1.0]) == 1
    assert first_smallest([float("nan"), 3.0]) == 1
