"""Learned blocks: the start in closed form, what steps may do, losses and gradients."""

import math
from dataclasses import replace

import pytest
import torch

from faqbench.quantization import fake_quantize
from faqbench.quantization import refine as core
from faqbench.quantization.activation_grid import ActivationGrid
from faqbench.quantization.grid import Grid, StraightThrough, learned_zero_point, range_parameters
from faqbench.quantization.refine import Examples, Recipe, SharedInput, StandIn, refine

RECIPES = {name: getattr(core, name)() for name in ("omniquant", "lrquant", "lrquant_plus", "signround")}
GRID = Grid(bits=2, group_size=8, symmetric=False)
OPTIONS = [f"quant.refinement.{option}" for option in ("steps=4", "windows=3", "clip_rate=0.1")]


@pytest.fixture
def settings(compose):
    def make(**changes):
        plain = {"steps": 20, "windows": 6, "batch": 3, "patience": None, "clip_rate": 0.1}
        section = compose("model=tiny-llama", "quant=lrquant").quant.refinement
        return section.model_copy(update=plain | changes)

    return make


@pytest.fixture
def lesson():
    """A block of two linears with a residual, its quantized linears' roles, and what it learns from."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    up, down, size = draw(24, 16), draw(16, 24) / 4, draw(16).exp()

    def run(hidden, given):
        up, down = given["up"].weight, given["down"].weight
        x = torch.nn.functional.normalize(hidden, dim=-1) * 4 * size
        return hidden + torch.tanh(x @ up.T) @ down.T

    hidden = draw(6, 5, 16)
    inputs = hidden + 0.3 * draw(6, 5, 16)
    weights = {"up": StandIn(up, None), "down": StandIn(down, None)}
    roles = [
        SharedInput(name="gate_up", weights={"up": up}, grids={"up": GRID}, start=size.sqrt()),
        SharedInput(name="down", weights={"down": down}, grids={"down": GRID}),
    ]
    return (
        run,
        roles,
        Examples(inputs=inputs, wanted=run(hidden, weights), homologous=run(inputs, weights)),
    )


def error_of(lesson, linears):
    run, _, examples = lesson
    got = run(examples.inputs, {n: StandIn(q.dequantize(), None) for n, q in linears.items()})
    return float((got - examples.wanted).square().mean())


@pytest.mark.parametrize("recipe", RECIPES)
def test_steps_lower_the_error_of_the_block_and_it_is_the_one_reported(lesson, settings, recipe):
    result = refine(*lesson, RECIPES[recipe], settings())
    before = refine(*lesson, RECIPES[recipe], settings(steps=0))
    assert result.n_steps > 0 == before.n_steps
    assert result.start_error == before.error == pytest.approx(error_of(lesson, before.linears))
    assert result.error == pytest.approx(error_of(lesson, result.linears))
    assert result.error < 0.95 * result.start_error


@pytest.mark.parametrize("recipe", ["omniquant", "signround"])
@pytest.mark.parametrize("rate", [1e-3, 1.0])
def test_a_block_is_never_worse_than_it_began_at_any_rate(lesson, settings, recipe, rate):
    fast = settings(clip_rate=rate, scale_rate=rate, offset_rate=rate, steps=11, seed=1)
    result = refine(*lesson, RECIPES[recipe], fast)
    assert result.error <= result.start_error


def test_without_steps_signround_is_plain_rounding_and_lrquant_the_scaled_and_shrunken_range(
    lesson, settings
):
    _, (scaled, plain), _ = lesson
    sign = refine(*lesson, RECIPES["signround"], settings(steps=0)).linears
    for role in (scaled, plain):
        for name, weight in role.weights.items():
            assert torch.equal(sign[name].dequantize(), fake_quantize(weight, GRID))
    learned = refine(*lesson, RECIPES["lrquant"], settings(steps=0)).linears["up"]
    groups = (scaled.weights["up"] * scaled.start).view(24, 2, 8)
    span = groups.amax(-1) - groups.amin(-1)
    assert torch.equal(learned.input_scale, scaled.start)
    torch.testing.assert_close(learned.scale, span * torch.tensor(4.0).sigmoid() / 3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_codes_give_what_was_learned_to_the_bit(lesson, settings, recipe):
    _, roles, _ = lesson
    state = core.start_of(roles, RECIPES[recipe])
    generator = torch.Generator().manual_seed(5)
    for value in state.values():
        value += 0.3 * torch.randn(value.shape, generator=generator)
    wanted = core.stand_ins(state, roles, RECIPES[recipe])
    linears, clipped = core.quantized(state, roles, RECIPES[recipe])
    for name, linear in linears.items():
        assert torch.equal(linear.dequantize(), wanted[name].weight)
        assert int(linear.qvalue.max()) <= 3
        assert 0 < clipped[name] < 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_seed_gives_the_same_codes_and_another_seed_others(lesson, settings, recipe):
    first, again, other = (
        refine(*lesson, RECIPES[recipe], settings(seed=seed)).linears["up"].dequantize()
        for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_offsets_stay_within_half_a_code_and_ranges_within_themselves(lesson, settings):
    _, roles, _ = lesson
    state = core.start_of(roles, RECIPES["signround"])
    take_step = core._signs(state, settings(steps=8, offset_rate=1.0), 1.0)
    for step in range(1, 4):
        for value in state.values():
            value.grad = torch.full_like(value, -1.0 if step < 3 else 1.0)
        take_step(step)
        for key, value in state.items():
            low, high = (-0.5, 0.5) if key.startswith("offset") else (0.0, 1.0)
            assert low <= float(value.min()) and float(value.max()) <= high
    assert float(state["offset up"].max()) == pytest.approx(0.5 - 6 / 8)


def test_gradients_are_those_of_a_rounding_that_is_the_identity_where_it_clamps_nothing():
    generator = torch.Generator().manual_seed(2)
    x, v = torch.randn(3, 2, 8, generator=generator), torch.rand(6, 8, generator=generator) - 0.5
    scale, zero = torch.rand(3, 2, generator=generator) + 0.2, torch.tensor([[2.0, 1.0]]).repeat(3, 1)
    grid = Grid(bits=2, group_size=8, symmetric=False)
    passed = torch.randn(3, 2, 8, generator=generator)

    def gradients(round_to):
        leaves = [t.clone().requires_grad_() for t in (x, scale, zero, v)]
        codes = round_to(*leaves)
        ((codes * leaves[1].unsqueeze(-1)) * passed).sum().backward()
        return codes.detach(), *(leaf.grad for leaf in leaves)

    def by_hand(x, scale, zero, v):
        exact = x / scale.unsqueeze(-1) + v.view_as(x)
        rounded = exact + (exact.round() - exact).detach()
        least, most = -zero.unsqueeze(-1), 3 - zero.unsqueeze(-1)
        return torch.where(rounded < least, least, torch.where(rounded > most, most, rounded))

    mine = gradients(lambda *leaves: StraightThrough.apply(*leaves, grid))
    for got, wanted in zip(mine, gradients(by_hand), strict=True):
        torch.testing.assert_close(got, wanted)
    shifted = mine[0] + zero.unsqueeze(-1)
    assert (shifted == 0).any() and (shifted == 3).any()


def test_a_zero_point_learns_without_moving():
    generator = torch.Generator().manual_seed(3)
    low = -torch.rand(3, 2, generator=generator).requires_grad_()
    fixed = range_parameters(low, 1 + low, Grid(bits=3, group_size=8, symmetric=False))
    learned = learned_zero_point(low, fixed)
    assert not fixed.zero_point.requires_grad
    assert torch.equal(learned.zero_point, fixed.zero_point)
    wanted = torch.autograd.grad((-low / fixed.scale).sum(), low, retain_graph=True)
    assert torch.equal(torch.autograd.grad(learned.zero_point.sum(), low)[0], *wanted)


def test_adams_steps_are_those_of_its_sums(settings):
    gradients = [torch.tensor([0.7, -2.0]), torch.tensor([0.1, 0.3]), torch.tensor([-1.4, 0.0])]
    state = {"low x": torch.zeros(2), "scale x": torch.zeros(2)}
    take_step = core._adam(state, settings(clip_rate=0.1, scale_rate=1e-3), 0.5)
    for step, gradient in enumerate(gradients, start=1):
        for value in state.values():
            value.grad = gradient.clone()
        take_step(step)

    def mean(values, momentum, n):
        weights = [momentum ** (n - i) for i in range(1, n + 1)]
        return sum(w * v for w, v in zip(weights, values[:n], strict=True)) / sum(weights)

    squares = [g**2 for g in gradients]
    steps = [mean(gradients, 0.9, n) / (mean(squares, 0.999, n).sqrt() + 1e-8) for n in (1, 2, 3)]
    torch.testing.assert_close(state["low x"], -0.05 * sum(steps))
    torch.testing.assert_close(state["scale x"], -0.0005 * sum(steps))


def test_the_cosine_loss_is_blind_to_gain_but_not_to_sign():
    y = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    assert float(core.cosine_loss(5 * y, y)) == pytest.approx(0.0, abs=1e-6)
    assert float(core.squared_error(5 * y, y)) > 1
    assert float(core.cosine_loss(-y, y)) == pytest.approx(-math.log(1e-6), rel=1e-5)


def test_parts_that_stand_still_come_to_weigh_alike():
    means, parts = core.RunningMeans(), [torch.tensor(100.0), torch.tensor(0.01)]
    values = [float(means.weighed(parts)) for _ in range(300)]
    assert values[0] == pytest.approx(100 / (0.95 + 5 + 1e-6) + 0.01 / (0.95 + 0.0005), rel=1e-4)
    assert values[-1] == pytest.approx(2.0, rel=1e-2)


def test_a_descent_that_meets_nan_begins_again_slower_and_says_so(lesson, settings):
    run, roles, examples = lesson
    start = core.start_of(roles, RECIPES["omniquant"])
    begun = core.stand_ins(start, roles, RECIPES["omniquant"])["up"].weight

    def fragile(hidden, given):
        moved = float((given["up"].weight - begun).detach().abs().max())
        return run(hidden, given) * (math.nan if moved > 1.2 else 1.0)

    result = refine(fragile, roles, examples, RECIPES["omniquant"], settings(clip_rate=1.0))
    assert result.n_restarts >= 1
    assert result.error < result.start_error


def test_a_block_that_gives_nan_alone_keeps_its_start(lesson, settings):
    run, roles, examples = lesson
    n_calls = []

    def broken(hidden, given):
        n_calls.append(len(hidden))
        return run(hidden, given) * (math.nan if len(n_calls) > 2 else 1.0)

    result = refine(broken, roles, examples, RECIPES["omniquant"], settings())
    assert (result.n_restarts, result.n_steps, len(n_calls)) == (3, 0, 2 + 4)
    assert result.error == result.start_error


def test_patience_ends_a_descent_that_gets_nowhere(lesson, settings):
    run, roles, examples = lesson
    n_calls = []

    def constant(hidden, given):
        n_calls.append(len(hidden))
        return run(hidden, given) * 0 + hidden

    result = refine(constant, roles, examples, RECIPES["omniquant"], settings(steps=500, patience=20))
    # The start and two checks of two batches each, and twenty steps.
    assert result.n_steps == 0 and len(n_calls) == 20 + 3 * 2


def test_both_targets_and_both_parts_are_in_the_loss_of_lrquant_plus(lesson, settings):
    run, roles, examples = lesson
    recipe = RECIPES["lrquant_plus"]
    loss = core._Loss(block=run, roles=roles, examples=examples, recipe=recipe)
    state, rows = core.start_of(roles, recipe), torch.arange(6)
    got = run(examples.inputs, core.stand_ins(state, roles, recipe))
    targets = (examples.wanted, examples.homologous)
    wanted = [sum(f(got, y) for y in targets) for f in (core.squared_error, core.cosine_loss)]
    torch.testing.assert_close(loss.parts(state, rows), wanted)
    alone = replace(loss, recipe=Recipe()).parts(core.start_of(roles, Recipe()), rows)
    assert len(alone) == 1


@pytest.mark.parametrize("grid", ["signed", "half_range", "full_range"])
def test_symmetric_grids_are_learned_too(lesson, settings, grid):
    run, roles, examples = lesson
    symmetric = Grid(bits=3, group_size=-1, symmetric=True, symmetric_grid=grid)
    roles = [replace(role, grids=dict.fromkeys(role.weights, symmetric)) for role in roles]
    result = refine(run, roles, examples, RECIPES["signround"], settings())
    assert result.error < result.start_error
    assert int(result.linears["up"].qvalue.min()) >= -4


def test_signround_of_no_steps_is_rtn_through_the_walk(quantized):
    learned = quantized("signround", "bits=3", "quant.refinement.steps=0")
    assert learned.same_as(quantized("rtn", "bits=3"))
    assert {r.refine_steps for r in learned.result.linears} == {0}


@pytest.mark.parametrize("preset", ["omniquant", "lrquant", "lrquant-plus", "signround"])
def test_the_walk_learns_every_block_and_reports_it(quantized, preset):
    outcome = quantized(preset, "bits=2", *OPTIONS)
    reports = outcome.result.linears
    assert len(reports) == 28
    assert all(r.refine_error <= r.refine_start and r.refine_restarts == 0 for r in reports)
    assert any(r.refine_error < r.refine_start for r in reports)
    assert all(r.relative_error > 0 for r in reports)
    for report in reports[:7]:
        scaled = preset.startswith("lrquant") and report.role in ("qkv", "gate_up")
        assert (report.scale_range > 1) == scaled


def test_a_learned_model_is_closer_to_full_precision_than_a_rounded_one(quantized):
    learned = quantized("signround", "bits=2", "quant.refinement.steps=20", "quant.refinement.windows=5")
    rounded = quantized("rtn", "bits=2")
    ends = [outcome.result.blocks[-1].relative_error for outcome in (learned, rounded)]
    assert ends[0] < 0.9 * ends[1]


def test_linears_that_are_skipped_stay_and_the_others_are_learned_around_them(quantized):
    outcome = quantized("signround", "bits=2", 'quant.skip=["*.down_proj","*.layers.1.*"]', *OPTIONS)
    kept = [n for n in outcome.before if torch.equal(outcome.before[n], outcome.after[n])]
    assert kept == [n for n in outcome.before if n.endswith("down_proj") or ".layers.1." in n]


def test_learned_scales_are_numbers_that_a_checkpoint_holds(lesson, settings):
    run, roles, examples = lesson
    half = replace(GRID, scale_dtype="float16")
    roles = [replace(role, grids=dict.fromkeys(role.weights, half)) for role in roles]
    result = refine(run, roles, examples, RECIPES["lrquant_plus"], settings())
    assert result.n_steps > 0
    for linear in result.linears.values():
        assert torch.equal(linear.scale, linear.scale.half().float())


ROUNDED_INPUTS = ["bits=4", "quant.activations.bits=4", "quant.activations.seen_by_rounding=true"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_grid_of_inputs_rounds_alike_while_it_is_learned_and_scales_have_gradients(compose, symmetric):
    kind = f"quant.activations.symmetric={symmetric}"
    quant = compose("model=tiny-llama", "quant=lrquant", kind, *ROUNDED_INPUTS)
    generator = torch.Generator().manual_seed(0)
    x, scale = torch.randn(2, 3, 8, generator=generator), torch.rand(8, generator=generator) + 0.5
    fixed = ActivationGrid(quant.quant.activations, scale, None)(x)
    x.requires_grad_(), scale.requires_grad_()
    learned = ActivationGrid(quant.quant.activations, scale, None)(x)
    assert torch.equal(learned, fixed)
    (learned - torch.ones(8)).square().sum().backward()
    assert x.grad.abs().max() > 0 and scale.grad.abs().max() > 0


def test_blocks_are_learned_with_rounded_inputs_where_roundings_see_them(quantized):
    seen = quantized("lrquant", *ROUNDED_INPUTS, *OPTIONS).result.linears[0]
    unseen = quantized("lrquant", "bits=4", *OPTIONS).result.linears[0]
    assert seen.refine_start > 2 * unseen.refine_start
    assert seen.refine_error < seen.refine_start


def test_a_static_range_of_inputs_goes_with_a_learned_scale(quantized):
    static = ["quant.activations.bits=8", "quant.activations.granularity=tensor"]
    outcome = quantized("lrquant", *static, "quant.activations.dynamic=false", *OPTIONS)
    role = outcome.loaded.architecture.role("qkv").linears[0]
    assert outcome.report(role).scale_range > 1
    ranges = {name: linear.input_range for name, linear in outcome.linears.items()}
    assert all(low < 0 < high for low, high in ranges.values())


def test_a_block_that_began_again_is_named_in_a_warning_of_the_record(quantized):
    result = quantized("signround", *OPTIONS).result
    again = [replace(r, refine_restarts=2) if r.block == 1 else r for r in result.linears]
    assert result.warnings == ()
    (warning,) = replace(result, linears=tuple(again)).warnings
    assert warning.endswith("in blocks: 1 (2 times).")
