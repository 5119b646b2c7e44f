"""QEP's and LoaQ's corrections and their variants, against the least-squares problem that they solve."""

import pytest
import torch

from faqbench.config import UserError, run_id
from faqbench.quantization.correct import CorrectionAccumulator, is_held_out


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
        accumulator = CorrectionAccumulator({"w": self.weight}, section, uses_residual=uses_residual)
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


def searched(toy, section, *, uses_residual, is_held):
    accumulator = CorrectionAccumulator({"w": toy.weight}, section, uses_residual=uses_residual)
    for held in (False, True):
        rows = is_held == held
        streams = (toy.x[rows], toy.x_hat[rows], toy.r[rows], toy.r_hat[rows])
        accumulator.add(*streams, is_held=held)
    return accumulator


@pytest.mark.parametrize("variant", [None, "residual", "norm_aware"])
def test_a_searched_strength_has_the_smallest_error_of_all_on_what_is_held_out(settings, variant):
    toy = Toy(n_tokens=60)  # few enough to fit noise
    is_held = torch.arange(60) % 4 == 3
    changes = {} if variant is None else {"variant": variant, "residual_strength": 0.5}
    section, uses_residual = settings(damping=0.01, **changes), variant is not None

    def at(strength):
        return section.model_copy(update={"strength": strength})

    found = searched(toy, at("search"), uses_residual=uses_residual, is_held=is_held).corrected()
    chosen = found["w"].strength
    held, fitted = Toy(n_tokens=60), Toy(n_tokens=60)
    for part, rows in ((held, is_held), (fitted, ~is_held)):
        for name in ("x", "x_hat", "r", "r_hat"):
            setattr(part, name, getattr(toy, name)[rows])

    def error(strength):
        moved = fitted.corrected(at(strength), uses_residual=uses_residual).weight
        return wanted_of(held, variant, moved)

    errors = {i / 50: error(i / 50) for i in range(51)}
    best = min(errors, key=errors.__getitem__)
    assert 0 < best < 1
    assert abs(chosen - best) <= 0.021
    # Then all windows count.
    everything = toy.corrected(at(chosen), uses_residual=uses_residual).weight
    torch.testing.assert_close(found["w"].weight, everything, rtol=1e-3, atol=1e-4)


def wanted_of(toy, variant, moved):
    """Return the squared error that a variant minimises, of the whole output, on a toy's tokens."""
    output, output_hat = toy.x @ toy.weight.T, toy.x_hat @ moved.T
    if variant is None:
        return float((output - output_hat).square().sum())
    if variant == "residual":
        rest = 0.5 * (toy.r - toy.r_hat)
        return float((output + rest - output_hat).square().sum())
    rms = (toy.r + output).square().mean(dim=-1, keepdim=True).sqrt()
    frozen = (toy.r_hat + toy.x_hat @ toy.weight.T).square().mean(dim=-1, keepdim=True).sqrt()
    gain = frozen / rms
    left = output * gain + 0.5 * (toy.r * gain - toy.r_hat) - output_hat
    return float((left / frozen).square().sum())


def test_streams_that_agree_ask_for_no_strength(settings):
    toy = Toy()
    toy.x_hat = toy.x
    accumulator = searched(
        toy, settings(strength="search"), uses_residual=False, is_held=torch.arange(200) % 4 == 3
    )
    found = accumulator.corrected()["w"]
    assert found.strength == 0 and torch.equal(found.weight, toy.weight)


def test_statistics_are_of_all_windows_also_where_some_are_held_out(settings):
    toy, is_held = Toy(), torch.arange(200) % 4 == 3
    accumulator = searched(toy, settings(strength="search"), uses_residual=False, is_held=is_held)
    seen = accumulator.statistics()
    assert seen.n_tokens == 200
    torch.testing.assert_close(seen.gram, toy.x_hat.T @ toy.x_hat / 200)
    torch.testing.assert_close(seen.mean_abs, toy.x_hat.abs().mean(dim=0))


@pytest.mark.parametrize(
    ("n_windows", "held"), [(2, [1]), (3, [2]), (4, [3]), (9, [3, 7]), (32, list(range(3, 32, 4)))]
)
def test_every_fourth_window_is_held_out_and_at_least_one(n_windows, held):
    assert [w for w in range(n_windows) if is_held_out(w, n_windows)] == held


@pytest.fixture
def loaq(compose):
    section = compose("model=tiny-llama", "quant=loaq").quant.correction
    return lambda **changes: section.model_copy(update=changes)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def corrected(section, weight, inputs, *, uses_residual):
    accumulator = CorrectionAccumulator({"w": weight}, section, uses_residual=uses_residual)
    for rows in torch.arange(len(inputs[0])).split(64):
        accumulator.add(*(t[rows] for t in inputs))
    return accumulator.corrected()["w"].weight, accumulator.statistics()


def streams(n_tokens=400, columns=16, rows=12):
    x, r = draw(0, n_tokens, columns), 3 * draw(1, n_tokens, rows)
    return x, x + 0.3 * draw(2, n_tokens, columns), r, r + 0.3 * draw(3, n_tokens, rows)


def test_norm_aware_is_a_weighted_least_squares_problem_with_both_factors_frozen(loaq):
    weight, (x, x_hat, r, r_hat) = draw(4, 12, 16), streams()
    section = loaq(strength=0.7, residual_strength=0.4, damping=1e-9, variant="norm_aware")
    found, _ = corrected(section, weight, (x, x_hat, r, r_hat), uses_residual=True)

    def rms(t):
        return (t.square().mean(1, keepdim=True) + 1e-6).sqrt()

    y, y_hat = x @ weight.T, x_hat @ weight.T
    gain = rms(r_hat + y_hat) / rms(r + y)
    wanted = y_hat + 0.7 * (gain * y - y_hat) + 0.4 * (gain * r - r_hat)
    per_token = 1 / rms(r_hat + y_hat)
    best = torch.linalg.lstsq(per_token * x_hat, per_token * wanted).solution.T
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["linear", "residual", "norm_aware"])
def test_the_statistics_that_come_with_a_correction_are_of_the_quantized_stream(loaq, variant):
    weight, inputs = draw(4, 12, 16), streams()
    section = loaq(variant=variant)
    _, found = corrected(section, weight, inputs, uses_residual=variant != "linear")
    x_hat = inputs[1]
    torch.testing.assert_close(found.gram, x_hat.T @ x_hat / len(x_hat), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean_abs, x_hat.abs().mean(0))
    assert found.n_tokens == len(x_hat)


def test_the_output_error_falls_as_the_strength_rises(loaq):
    weight, (x, x_hat, r, r_hat) = draw(4, 12, 16), streams()
    errors = []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        section = loaq(strength=strength, damping=1e-9, variant="linear")
        moved, _ = corrected(section, weight, (x, x_hat, r, r_hat), uses_residual=False)
        errors.append(float((x_hat @ moved.T - x @ weight.T).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.95 * errors[0]


def test_loaqs_residual_part_brings_the_sum_closer_than_qep_does(loaq):
    weight, (x, x_hat, r, r_hat) = draw(4, 12, 16), streams()
    r_hat = r + x_hat[:, :12]  # an error of the residual that x̂ can make up for
    section = loaq(strength=1.0, residual_strength=1.0, damping=1e-9)
    qep, _ = corrected(section, weight, (x, x_hat, r, r_hat), uses_residual=False)
    loaq, _ = corrected(section, weight, (x, x_hat, r, r_hat), uses_residual=True)

    def error(moved):
        return float((r_hat + x_hat @ moved.T - r - x @ weight.T).square().sum())

    assert error(loaq) < 0.7 * error(qep)


def test_one_strength_for_all_roles_is_the_same_strength_for_each(quantized):
    each = quantized("qep", "quant.correction.strength={qkv: 0.5, o: 0.5, gate_up: 0.5}")
    assert each.same_as(quantized("qep"))


def test_equal_strengths_have_one_run_id(compose):
    each = "quant.correction.strength={qkv: 0.5, o: 0.5, gate_up: 0.5}"
    one = compose("model=tiny-llama", "quant=qep")
    assert run_id(compose("model=tiny-llama", "quant=qep", each)) == run_id(one)


def test_a_strength_per_role_moves_only_the_roles_it_is_positive_for(quantized):
    some = quantized("qep", "quant.correction.strength={qkv: 0, o: 0.5, gate_up: 0}")
    rtn = quantized("rtn")
    assert some.same_as(rtn, "q_proj") and some.same_as(rtn, "up_proj")
    assert not some.same_as(rtn, "o_proj")


def test_strengths_of_zero_for_each_role_are_the_uncorrected_method(quantized):
    none = quantized("qep-gptq", "quant.correction.strength={qkv: 0, o: 0, gate_up: 0}")
    assert none.same_as(quantized("gptq"))


@pytest.mark.parametrize("preset", ["loaq", "loaq-gptq"])
def test_the_linear_variant_of_strength_zero_does_not_read_the_residual_strength(quantized, preset):
    off = "quant.correction={strength: 0, residual_strength: 1, variant: linear}"
    plain = {"loaq": "rtn", "loaq-gptq": "gptq"}[preset]
    assert quantized(preset, off).same_as(quantized(plain))


@pytest.mark.parametrize("preset", ["qep", "loaq"])
def test_a_searched_strength_is_each_roles_own_and_stands_in_the_report(quantized, preset):
    search = ["bits=2", "quant.correction={strength: search, damping: 0.01}"]
    found = quantized(preset, *search)
    roles = {"qep": {"qkv", "o", "gate_up"}}.get(preset, {"qkv", "o", "gate_up", "down"})
    chosen = {(r.block, r.role): r.correction_strength for r in found.result.linears}
    given = {key for key, strength in chosen.items() if strength is not None}
    assert given == {(block, role) for block in (0, 1, 2, 3) for role in roles}
    assert all(0 <= chosen[key] <= 1 for key in given) and len({chosen[key] for key in given}) > 4
    assert found.same_as(quantized(preset, *search))


def test_a_given_strength_stands_in_the_report(quantized):
    found = quantized("qep", "quant.correction.strength={qkv: 0.25, o: 0.5, gate_up: 1}")
    chosen = {r.role: r.correction_strength for r in found.result.linears}
    assert chosen == {"qkv": 0.25, "o": 0.5, "gate_up": 1.0, "down": None}


@pytest.mark.parametrize("preset", ["qep", "loaq"])
def test_corrections_bring_the_blocks_outputs_closer_to_full_precision(quantized, preset):
    strong = "quant.correction={strength: 1, damping: 0.01, roles: [qkv, o, gate_up, down]}"
    ours = quantized(preset, "bits=2", "quant.trace_windows=5", strong).result.blocks
    rtn = quantized("awq", "bits=2", "quant.trace_windows=5", "quant.scale=none").result.blocks
    assert ours[-1].relative_error < rtn[-1].relative_error
    assert ours[-1].cosine > rtn[-1].cosine


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quant.correction.roles=[qkv,mlp]", ["quant.correction.roles.1=mlp", "gate_up"]),
        ("quant.correction.strength={qkv: 0.5}", ["given for qkv", "lists qkv, o, gate_up"]),
        ("quant.correction.strength={qkv: 2, o: 0, gate_up: 0}", ["strength.qkv=2", "equal to 1"]),
        ("quant.correction.strength=-0.5", ["strength=-0.5", "equal to 0"]),
        ("quant.correction.strength=much", ["strength=much", "a number or 'search'"]),
        ("quant.correction.strength=serch", ["Did you mean 'search'?"]),
        ("quant.correction.roles=[o,o]", ["names a role twice"]),
        ("gamma=-0.1", ["gamma=-0.1", "equal to 0"]),
        ("window=-1", ["window=-1", "equal to 0"]),
        ("bits=1", ["bits=1", "equal to 2"]),
        ('quant.overrides=[{pattern: "*", bits: 9, group_size: null}]', ["bits=9", "equal to 8"]),
        ('quant.overrides=[{pattern: "*", bits: null, group_size: 0}]', ["'*' group_size=0", "-1"]),
        ('quant.overrides=[{pattern: "*", bits: null, group_size: null}]', ["changes nothing"]),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_sentence(compose, override, words):
    with pytest.raises(UserError) as caught:
        compose("model=tiny-llama", "quant=qep", override)
    text = str(caught.value)
    assert all(word in text for word in words)
    assert "\n" not in text


def test_a_search_of_the_strength_needs_a_window_to_hold_out(compose):
    one = ("model=tiny-llama", "calibration.n_samples=1", "quant.correction.strength=search")
    with pytest.raises(UserError, match=r"n_samples=1 leaves none; it needs at least 2\."):
        compose(*one, "quant=qep")
    assert compose(*one, "quant=rtn").quant.correction.strength == "search"
