"""Hadamard matrices of the orders that models need, and the rotations made of them."""

import pytest
import torch

from faqbench.models.hadamard import block_width, draw_rotation, hadamard

# The prime constructions of METHODS' table, and sizes of models.
ORDERS = (1, 2, 4, 12, 20, 28, 36, 44, 60, 68, 76, 108, 140, 148)
SIZES = (64, 128, 576, 640, 896, 960, 1536)


@pytest.mark.parametrize("order", [*ORDERS, *SIZES])
def test_a_hadamard_matrix_has_rows_of_ones_that_are_orthogonal(order):
    matrix = hadamard(order)
    assert set(matrix.unique().tolist()) <= {1.0, -1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("size", [2560, 3072, 3584, 4864, 5120, 8960, 9728, 12288, 14336, 18944, 25600])
def test_the_sizes_of_published_models_are_mixed_as_a_whole(size):
    assert block_width(size) == size


def test_a_size_without_an_order_gets_blocks_of_a_power_of_two():
    assert {n: block_width(n) for n in (11008, 18, 50, 9, 172)} == {
        11008: 256, 18: 2, 50: 2, 9: 1, 172: 4,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["hadamard", "random"])
@pytest.mark.parametrize("size", [64, 90, 36, 1536])
def test_a_rotation_is_orthogonal_and_multiplies_as_its_matrix_does(kind, size):
    rotation = draw_rotation(kind, size, seed=1, place="R1")
    matrix = rotation.matrix()
    x = torch.randn(3, 5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rotation.times(x), x @ matrix)
    assert torch.allclose(rotation.times(x).norm(dim=-1), x.norm(dim=-1))


def test_repeating_a_rotation_rotates_every_head_alike():
    rotation = draw_rotation("hadamard", 8, seed=0, place="R2 3")
    x = torch.randn(4, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heads = [rotation.times(head) for head in x.split(8, dim=-1)]
    assert torch.equal(rotation.repeated(3).times(x), torch.cat(heads, dim=-1))


def test_draws_differ_by_seed_and_place_and_by_nothing_else():
    def draw(seed, place):
        return draw_rotation("random", 6, seed, place).matrix()

    assert torch.equal(draw(0, "R1"), draw(0, "R1"))
    assert not torch.equal(draw(0, "R1"), draw(1, "R1"))
    assert not torch.equal(draw(0, "R2 0"), draw(0, "R2 1"))


def test_random_rotations_have_no_preferred_direction():
    draws = torch.stack([draw_rotation("random", 3, s, "R1").matrix() for s in range(300)])
    assert draws.mean(dim=0).abs().max() < 0.15


def test_a_row_with_an_outlier_is_rounded_better_in_the_rotated_basis():
    row = torch.randn(1, 576, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row[0, 7] = 40

    def error(x):
        step = x.abs().amax() / 7
        return float((x.div(step).round() * step - x).norm())

    assert error(draw_rotation("hadamard", 576, 0, "R1").times(row)) < error(row) / 3
