"""LoaQ's norm-aware variant, strengths per role, and how far a correction brings the outputs."""

import pytest
import torch

from faqbench.config import UserError, run_id
from faqbench.quantization.correct import CorrectionAccumulator


@pytest.fixture
def settings(compose):
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


def test_norm_aware_is_a_weighted_least_squares_problem_with_both_factors_frozen(settings):
    weight, (x, x_hat, r, r_hat) = draw(4, 12, 16), streams()
    section = settings(strength=0.7, residual_strength=0.4, damping=1e-9, variant="norm_aware")
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
def test_the_statistics_that_come_with_a_correction_are_of_the_quantized_stream(settings, variant):
    weight, inputs = draw(4, 12, 16), streams()
    section = settings(variant=variant)
    _, found = corrected(section, weight, inputs, uses_residual=variant != "linear")
    x_hat = inputs[1]
    torch.testing.assert_close(found.gram, x_hat.T @ x_hat / len(x_hat), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean_abs, x_hat.abs().mean(0))
    assert found.n_tokens == len(x_hat)


def test_the_output_error_falls_as_the_strength_rises(settings):
    weight, (x, x_hat, r, r_hat) = draw(4, 12, 16), streams()
    errors = []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        section = settings(strength=strength, damping=1e-9, variant="linear")
        moved, _ = corrected(section, weight, (x, x_hat, r, r_hat), uses_residual=False)
        errors.append(float((x_hat @ moved.T - x @ weight.T).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.95 * errors[0]


def test_loaqs_residual_part_brings_the_sum_closer_than_qep_does(settings):
    weight, (x, x_hat, r, r_hat) = draw(4, 12, 16), streams()
    r_hat = r + x_hat[:, :12]  # an error of the residual that x̂ can make up for
    section = settings(strength=1.0, residual_strength=1.0, damping=1e-9)
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
