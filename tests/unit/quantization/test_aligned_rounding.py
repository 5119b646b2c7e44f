"""GPTAQ, FOEM, ResComp and Qronos: their identities, and against dense float64 loops of their formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from faqbench.config.experiment import GPTQSection
from faqbench.quantization import Grid, fake_quantize
from faqbench.quantization.correct import CorrectionAccumulator, CrossAccumulator
from faqbench.quantization.gptq import Alignment, Problem, _carried, gptq_round, inverse_factor
from faqbench.quantization.grid import RoundInput
from faqbench.quantization.qronos import largest_eigenvalue, round_qronos
from faqbench.quantization.reproducible import HessianError

ROW = Grid(bits=3, group_size=-1, symmetric=False)
GRIDS = [
    Grid(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in (2, 4)
    for group_size in (16, -1)
    for symmetric in (True, False)
]
few = hypothesis_settings(max_examples=20, deadline=None)


def options(*, act_order=False, block_size=128, damping=0.01):
    return GPTQSection(damping=damping, act_order=act_order, block_size=block_size)


class Toy:
    """A weight, and correlated inputs of it on both streams, in float64."""

    def __init__(self, seed=0, rows=10, columns=48, drift=0.2):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        mix = draw(columns, columns)
        self.x = draw(6 * columns, columns) @ mix
        self.x_hat = self.x + drift * draw(6 * columns, columns) @ mix
        self.weight = draw(rows, columns)
        self.settle()

    def settle(self):
        n = len(self.x)
        self.hessian = self.x_hat.T @ self.x_hat / n
        self.cross = (self.x - self.x_hat).T @ self.x_hat / n

    def kill(self, *columns):
        self.x_hat[:, list(columns)] = 0
        self.settle()

    def rounded(self, grid=ROW, settings=None, **alignment):
        chosen = Alignment(cross=self.cross, **alignment)
        return gptq_round(self.weight, self.hessian, grid, settings or options(), alignment=chosen)


def stand_in(result):
    return (result.codes * result.parameters.scale.unsqueeze(-1)).flatten(1)


def same(a, b):
    return torch.equal(a.codes, b.codes) and torch.equal(a.parameters.scale, b.parameters.scale)


def on_grid(column, group, grid):
    """Round one column to the grid of its group [rows, width]."""
    if grid.symmetric:
        step = group.abs().amax(1).clamp(min=1e-5) / (2 ** (grid.bits - 1) - 1)
        codes = (column / step).round().clamp(-(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1)
        return codes * step
    step = (group.amax(1) - group.amin(1)).clamp(min=1e-5) / (2**grid.bits - 1)
    zero = (-(group.amin(1) / step).round()).clamp(0, 2**grid.bits - 1)
    return (((column / step).round() + zero).clamp(0, 2**grid.bits - 1) - zero) * step


def naive(toy, grid, *, alpha=0.0, beta=0.0, original=0.0, act_order=False, damping=0.01):
    """METHODS2 4.2 to 4.4 written out, on the whole matrix, by way of an explicit inverse."""
    v, h, d = toy.weight.clone(), toy.hessian.clone(), toy.cross.clone()
    dead = h.diagonal() == 0
    h += torch.diag(dead.double())
    v[:, dead], d[:, dead] = 0, 0
    width = grid.group_width(v.shape[1])
    static = v.clone()
    order = torch.arange(len(h))
    if act_order:
        order = h.diagonal().argsort(descending=True, stable=True)
        v, h, d = v[:, order], h[order][:, order], d[order][:, order]
    w, result = v.clone(), torch.zeros_like(v)
    inverse = torch.linalg.inv(h + damping * h.diagonal().mean() * torch.eye(len(h)))
    upper = torch.linalg.cholesky(inverse).T
    p = alpha * (d @ upper.T).triu(1) @ upper
    r = original * ((d + h) @ upper.T).triu(1) @ upper
    for c in range(len(h)):
        w[:, c] -= beta * (w[:, c] - v[:, c])
        if act_order or width == len(h):
            start = int(order[c]) // width * width
            group = static[:, start : start + width]
        elif c % width == 0:
            group = w[:, c : c + width].clone()
        now = w[:, c].clone()
        result[:, c] = on_grid(now, group, grid)
        error = (now - result[:, c] - beta * (now - v[:, c])) / upper[c, c]
        w[:, c + 1 :] += torch.outer(now, p[c, c + 1 :])
        w[:, c + 1 :] += torch.outer(v[:, c] - now, r[c, c + 1 :])
        w[:, c + 1 :] -= torch.outer(error, upper[c, c + 1 :])
    return result[:, order.argsort()]


def naive_qronos(toy, grid, alpha, *, act_order=False):
    """METHODS2 4.5 written out: the second step as a linear system of its own."""
    w, h, d = toy.weight.clone(), toy.hessian.clone(), toy.cross.clone()
    dead = h.diagonal() == 0
    h += torch.diag(dead.double())
    w[:, dead], d[:, dead] = 0, 0
    order = torch.arange(len(h))
    if act_order:
        order = h.diagonal().argsort(descending=True, stable=True)
        w, h, d = w[:, order], h[order][:, order], d[order][:, order]
    g, damped = d + h, h + alpha * torch.linalg.matrix_norm(h, 2) * torch.eye(len(h))
    shift = damped - h
    first = (w @ g[:, 0] - w[:, 1:] @ h[0, 1:]) / h[0, 0]
    result = torch.zeros_like(w)
    result[:, 0] = on_grid(first, w, grid)
    wanted = (w @ (g + shift))[:, 1:] - torch.outer(result[:, 0], h[0, 1:])
    rest = torch.linalg.solve(damped[1:, 1:], wanted.T).T
    upper = torch.linalg.cholesky(torch.linalg.inv(damped[1:, 1:])).T
    for c in range(len(h) - 1):
        result[:, c + 1] = on_grid(rest[:, c], w, grid)
        error = (rest[:, c] - result[:, c + 1]) / upper[c, c]
        rest[:, c + 1 :] -= torch.outer(error, upper[c, c + 1 :])
    return result[:, order.argsort()]


@pytest.fixture(scope="module")
def qronos(compose):
    section = compose("model=tiny-llama", "quant=qronos").quant

    def make(toy, grid=ROW, *, alpha=1e-6, **changes):
        quant = section.model_copy(
            update={
                "gptq": options(**changes),
                "qronos": section.qronos.model_copy(update={"alpha": alpha}),
            }
        )
        known = RoundInput(hessian=toy.hessian, cross=toy.cross)
        return round_qronos(toy.weight, known, grid, quant, None)

    return make


@few
@given(st.integers(0, 999), st.sampled_from(GRIDS), st.booleans())
def test_all_coefficients_at_zero_is_gptq_bit_for_bit(seed, grid, act_order):
    toy, settings = Toy(seed), options(act_order=act_order)
    plain = gptq_round(toy.weight, toy.hessian, grid, settings)
    assert same(toy.rounded(grid, settings, alpha=0.0, beta=0.0, original=0.0), plain)


@few
@given(st.integers(0, 999), st.sampled_from(GRIDS), st.booleans())
def test_gptaq_of_streams_that_agree_is_gptq_bit_for_bit(seed, grid, act_order):
    toy, settings = Toy(seed, drift=0.0), options(act_order=act_order)
    plain = gptq_round(toy.weight, toy.hessian, grid, settings)
    assert same(toy.rounded(grid, settings, alpha=1.0), plain)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "alignment",
    [
        {"alpha": 0.25},
        {"beta": 0.2},
        {"alpha": 0.25, "original": 0.25},
        {"alpha": 0.7, "beta": 0.1, "original": 0.4},
    ],
)
def test_the_loop_is_its_formula_in_float64(alignment, grid, act_order):
    toy = Toy(1)
    toy.kill(3, 30)
    found = stand_in(toy.rounded(grid, options(act_order=act_order, block_size=16), **alignment))
    expected = naive(toy, grid, act_order=act_order, **alignment)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not found[:, [3, 30]].any()


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group_size", [16, -1])
def test_codes_do_not_depend_on_the_column_block_size(group_size, act_order):
    toy, grid = Toy(2), Grid(bits=3, group_size=group_size, symmetric=False)

    def at(block_size):
        settings = options(act_order=act_order, block_size=block_size)
        return toy.rounded(grid, settings, alpha=0.5, beta=0.2, original=0.25).codes

    assert all(torch.equal(at(size), at(48)) for size in (1, 7, 16, 33))


def test_without_the_triangle_gptaq_is_qeps_correction(compose):
    toy = Toy(3)
    section = compose("model=tiny-llama", "quant=qep").quant.correction
    section = section.model_copy(update={"strength": 0.25, "damping": 0.01})
    accumulator = CorrectionAccumulator({"w": toy.weight.float()}, section, uses_residual=False)
    accumulator.add(toy.x, toy.x_hat, None, None)
    moved = accumulator.corrected()["w"].weight - toy.weight

    upper, _, _ = inverse_factor(toy.hessian, 0.01)
    size = toy.hessian.diagonal().mean()
    whole = 0.25 * (toy.cross / size) @ upper.T @ upper
    torch.testing.assert_close(toy.weight @ whole, moved, rtol=1e-3, atol=1e-5)
    problem = Problem.of(toy.weight, toy.hessian, toy.cross, ROW, False, None)
    ((carried, _),) = _carried(problem, upper, Alignment(alpha=0.25, cross=toy.cross), None)
    lost = 0.25 * ((toy.cross / size) @ upper.T).tril() @ upper
    torch.testing.assert_close(carried + lost, whole)
    assert torch.equal(carried, carried.triu(1))


def test_the_cross_statistic_is_the_formula_of_the_methods_page():
    toy = Toy(4)
    accumulator = CrossAccumulator(48, torch.device("cpu"))
    for rows in torch.arange(len(toy.x)).split(100):
        accumulator.add(toy.x[rows].float(), toy.x_hat[rows].float(), None, None)
    torch.testing.assert_close(accumulator.cross().double(), toy.cross, rtol=1e-4, atol=1e-3)
    gram = accumulator.statistics().gram.double()
    torch.testing.assert_close(gram, toy.hessian, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_gptaq_comes_closer_to_the_full_precision_output_than_gptq(seed):
    toy = Toy(seed, rows=40, drift=0.5)
    wanted = toy.x @ toy.weight.T

    def error(result):
        return float((toy.x_hat @ stand_in(result).T - wanted).square().sum())

    assert error(toy.rounded(alpha=1.0)) < 0.9 * error(toy.rounded(alpha=0.0))


def test_foem_at_one_rounds_every_column_from_its_own_weight():
    toy = Toy(5)
    found, rtn = stand_in(toy.rounded(beta=1.0)), fake_quantize(toy.weight, ROW)
    torch.testing.assert_close(found, rtn)
    assert not torch.equal(stand_in(toy.rounded()), found)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_qronos_is_its_formula_in_float64(qronos, bits, act_order):
    toy, grid = Toy(6), Grid(bits=bits, group_size=-1, symmetric=bits == 4)
    toy.kill(0, 17)
    found = stand_in(qronos(toy, grid, alpha=1e-3, act_order=act_order, block_size=16))
    expected = naive_qronos(toy, grid, 1e-3, act_order=act_order)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert not found[:, [0, 17]].any()


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_qronos_of_streams_that_agree_is_gptq_at_its_damping(qronos, grid, act_order):
    toy = Toy(7, drift=0.0)
    found = qronos(toy, grid, alpha=1e-3, act_order=act_order)
    settings = options(act_order=act_order, damping=found.damping)
    plain = gptq_round(toy.weight, toy.hessian, grid, settings)
    torch.testing.assert_close(stand_in(found), stand_in(plain))


@pytest.mark.parametrize("seed", range(5))
def test_qronos_comes_closer_to_the_full_precision_output_than_gptq(qronos, seed):
    toy = Toy(seed, rows=40, drift=0.5)
    wanted = toy.x @ toy.weight.T

    def error(result):
        return float((toy.x_hat @ stand_in(result).T - wanted).square().sum())

    found = qronos(toy, alpha=1e-3, act_order=True)
    assert error(found) < 0.9 * error(toy.rounded(settings=options(act_order=True)))


def test_qronos_refuses_what_cannot_be_factored(qronos):
    toy = Toy(8)
    toy.hessian[2, 5] = torch.nan
    with pytest.raises(HessianError, match="NaN"):
        qronos(toy)


def test_qronos_says_how_far_it_had_to_raise_its_damping(qronos):
    toy = Toy(9)
    toy.hessian -= 0.2 * largest_eigenvalue(toy.hessian) * torch.eye(48)
    toy.hessian.diagonal().clamp_(min=1e-3)
    raised = qronos(toy, alpha=1e-6)
    sound = qronos(Toy(9), alpha=1e-6)
    assert raised.damping > 1e4 * sound.damping
    assert stand_in(raised).isfinite().all()


@few
@given(st.integers(0, 999))
def test_power_iteration_finds_the_largest_eigenvalue(seed):
    hessian = Toy(seed).hessian
    largest = torch.linalg.eigvalsh(hessian)[-1]
    # Where two eigenvalues are close, thirty steps leave some of both: 0.88 in the worst of the thousand.
    assert 0.85 * largest < largest_eigenvalue(hessian) < 1.000001 * largest
