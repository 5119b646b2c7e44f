"""QEP's and LoaQ's corrections, against the least-squares problem that they solve."""

import pytest
import torch

from faqbench.quantization.correct import CorrectionAccumulator


@pytest.fixture
def settings(compose):
    section = compose("model=tiny-llama", "quant=qep").quant.correction
    return lambda **changes: section.model_copy(update=changes)


class Toy:
    """Inputs of one linear on both streams, and the residuals that its output is added to."""

    def __init__(self, seed=0, n_tokens=200, columns=16, rows=8):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        self.x = draw(n_tokens, columns)
        self.x_hat = self.x + 0.2 * draw(n_tokens, columns)
        self.r = draw(n_tokens, rows)
        self.r_hat = self.r + 0.2 * draw(n_tokens, rows)
        self.weight = draw(rows, columns)

    def corrected(self, section, *, uses_residual=False):
        accumulator = CorrectionAccumulator(
            {"w": self.weight}, section, uses_residual=uses_residual
        )
        for rows in torch.arange(len(self.x)).split(64):
            accumulator.add(self.x[rows], self.x_hat[rows], self.r[rows], self.r_hat[rows])
        return accumulator.corrected()["w"]


def test_qep_is_the_formula_of_the_methods_page(settings):
    toy = Toy()
    x, x_hat, w = toy.x.double(), toy.x_hat.double(), toy.weight.double()
    hessian = x_hat.T @ x_hat / len(x)
    cross = (x - x_hat).T @ x_hat / len(x)
    damped = hessian + 0.3 * hessian.diagonal().mean() * torch.eye(16)
    expected = w + 0.5 * w @ cross @ torch.linalg.inv(damped)
    found = toy.corrected(settings(strength=0.5, damping=0.3)).weight
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_full_strength_and_no_damping_is_least_squares_on_the_quantized_stream(settings):
    toy = Toy()
    found = toy.corrected(settings(strength=1.0, damping=1e-9)).weight
    best = torch.linalg.lstsq(toy.x_hat, toy.x @ toy.weight.T).solution.T
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)


def test_loaqs_residual_variant_makes_up_for_the_residual_too(settings):
    toy = Toy()
    section = settings(strength=1.0, residual_strength=1.0, damping=1e-9, variant="residual")
    found = toy.corrected(section, uses_residual=True).weight
    wanted = toy.x @ toy.weight.T + toy.r - toy.r_hat
    best = torch.linalg.lstsq(toy.x_hat, wanted).solution.T
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-4)


def test_a_residual_of_strength_zero_is_qep(settings):
    toy = Toy()
    loaq = toy.corrected(settings(residual_strength=0.0), uses_residual=True)
    torch.testing.assert_close(loaq.weight, toy.corrected(settings()).weight)


@pytest.mark.parametrize("variant", ["residual", "norm_aware"])
def test_streams_that_agree_leave_the_weight_as_it_was(settings, variant):
    toy = Toy()
    toy.x_hat, toy.r_hat = toy.x, toy.r
    found = toy.corrected(settings(strength=1.0, variant=variant), uses_residual=True)
    torch.testing.assert_close(found.weight, toy.weight, rtol=0, atol=1e-5)


def test_heavy_damping_pulls_toward_the_weight_and_never_toward_zero(settings):
    toy = Toy()
    found = toy.corrected(settings(damping=1e4)).weight
    torch.testing.assert_close(found, toy.weight, rtol=0, atol=1e-3)


def test_a_corrected_weight_has_a_smaller_output_error(settings):
    toy = Toy()
    wanted = toy.x @ toy.weight.T
    found = toy.corrected(settings(strength=1.0, damping=0.01)).weight
    after = (toy.x_hat @ found.T - wanted).square().sum()
    assert after < 0.9 * (toy.x_hat @ toy.weight.T - wanted).square().sum()


def test_an_input_that_is_always_zero_leaves_the_weight_as_it_was(settings):
    toy = Toy()
    toy.x, toy.x_hat = torch.zeros_like(toy.x), torch.zeros_like(toy.x)
    assert torch.equal(toy.corrected(settings()).weight, toy.weight)


def test_a_singular_hessian_gets_more_damping_and_says_so(settings):
    toy = Toy(n_tokens=3)
    toy.x_hat[:, ::2] *= 1e6
    found = toy.corrected(settings(damping=1e-20))
    assert found.weight.isfinite().all()
    assert found.damping >= 1e-20
