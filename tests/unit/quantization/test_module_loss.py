"""The reference's objective: equal to the Gram loss where it must be, and to a naive run of the model."""

import pytest
import torch

from faqbench.models import open_stream
from faqbench.quantization import assign_grids, streams
from faqbench.quantization.grid import fake_quantize
from faqbench.quantization.module_loss import ModuleObjective, coarse, near
from faqbench.quantization.quadratic import halve
from faqbench.quantization.scale import (
    alpha_grid,
    gram_loss,
    scale_from_statistic,
    search_scale,
)

ALPHAS = [0.0, 0.25, 0.5, 0.75, 0.95]
MODULE = "quant.search.loss=module"
REFINED = "quant.search.loss=refined"


class Problem:
    """One role of the first block of a tiny model, with the statistics of its input."""

    def __init__(self, loaded, store, quant, tokens, role):
        self.loaded, self.role = loaded, loaded.architecture.role(role)
        self.block = loaded.architecture.block_modules(loaded.model)[0]
        grids = assign_grids(loaded.model, loaded.architecture, quant)
        self.grids = {n: grids[f"model.layers.0.{n}"] for n in self.role.linears}
        self.weights = {
            n: self.block.get_submodule(n).weight.float().clone() for n in self.role.linears
        }
        self.statistics = store.block(0)[role]
        self.scales = [scale_from_statistic(self.statistics.mean_abs, a) for a in ALPHAS]
        self.tokens = tokens

    @torch.inference_mode()
    def losses(self, batch_size=2):
        stream = open_stream(self.loaded.model, self.loaded.architecture, self.tokens, batch_size)
        objective = ModuleObjective(stream=stream, block=self.block, role=self.role)
        return objective.losses(self.weights, self.grids, self.scales)

    @torch.inference_mode()
    def naive_losses(self):
        """Run the whole model on all windows at once, candidate by candidate."""
        seen = []
        handle = self.block.get_submodule(self.role.inspect).register_forward_hook(
            lambda _module, _args, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        self.loaded.model(self.tokens)
        for scale in self.scales:
            for name, weight in self.weights.items():
                stand_in = fake_quantize(weight * scale, self.grids[name]) / scale
                self.block.get_submodule(name).weight.copy_(stand_in)
            self.loaded.model(self.tokens)
        handle.remove()
        for name, weight in self.weights.items():
            self.block.get_submodule(name).weight.copy_(weight)
        return [float((out.double() - seen[0].double()).square().mean()) for out in seen[1:]]


@pytest.fixture
def problem(load, observed, compose, tokens):
    def make(role, **random):
        loaded = load(**random)
        quant = compose("model=tiny-llama", "quant=awq").quant
        return Problem(loaded, observed(loaded), quant, tokens, role)

    return make


@pytest.mark.parametrize("role", ["o", "down"])
def test_where_the_module_is_the_linear_it_is_the_gram_loss_per_output(problem, role):
    p = problem(role)
    (weight,), (grid,) = p.weights.values(), p.grids.values()
    grams = [gram_loss(weight, s, halve(p.statistics.gram), grid) / len(weight) for s in p.scales]
    assert p.losses() == pytest.approx(grams, rel=1e-4)


@pytest.mark.parametrize("role", ["qkv", "o", "gate_up", "down"])
def test_it_is_the_mean_squared_error_of_the_modules_output_in_the_whole_model(problem, role):
    p = problem(role)
    assert p.losses() == pytest.approx(p.naive_losses(), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_it_does_not_depend_on_the_batch_size(problem, batch_size):
    p = problem("qkv")
    assert p.losses(batch_size) == pytest.approx(p.losses(), rel=1e-4)


def test_it_leaves_the_weights_as_they_were(problem):
    p = problem("gate_up")
    p.losses()
    assert all(torch.equal(p.block.get_submodule(n).weight, w) for n, w in p.weights.items())


def test_o_and_down_choose_the_same_alpha_by_either_loss(load, quantized):
    gram = quantized("awq", loaded=load(num_key_value_heads=4))
    module = quantized("awq", MODULE, loaded=load(num_key_value_heads=4))
    for linear in ("self_attn.o_proj", "mlp.down_proj"):
        for block in range(4):
            assert gram.report(linear, block).alpha == module.report(linear, block).alpha
    assert gram.same_as(module, "o_proj") and gram.same_as(module, "down_proj")


def test_qkv_may_choose_another_alpha_and_clip_and_rounding_stay_the_same(quantized):
    gram, module = quantized("awq"), quantized("awq", MODULE)
    alphas = [[r.alpha for r in o.result.linears if r.role == "qkv"] for o in (gram, module)]
    assert alphas[0] != alphas[1]
    fixed = quantized("faq", MODULE, "quant.preview.alpha=0.5")
    assert fixed.same_as(quantized("faq", "quant.preview.alpha=0.5"))


@pytest.mark.parametrize("loss", [MODULE, REFINED])
@pytest.mark.parametrize("preset", ["awq", "faq", "qep-awq"])
def test_tracing_changes_nothing(quantized, preset, loss):
    traced = quantized(preset, loss, "quant.trace_windows=2")
    assert traced.same_as(quantized(preset, loss, "quant.trace_windows=0"))
    assert len(traced.result.blocks) == 4


def test_with_a_correction_it_measures_on_the_quantized_stream(quantized):
    first = quantized("qep-awq", MODULE, "quant.correction.roles=[o]")
    plain = quantized("awq", MODULE)
    assert first.same_as(plain, "layers.0.self_attn.q_proj")
    assert all(w.isfinite().all() for w in first.after.values())
    assert not first.same_as(plain, "layers.3.self_attn.q_proj")


def test_the_exponents_near_one_are_those_up_to_two_steps_away():
    alphas = [i / 10 for i in range(10)]
    assert near(0.5, alphas) == [0.3, 0.4, 0.5, 0.6, 0.7]
    assert near(0.0, alphas) == [0.0, 0.1, 0.2]
    assert near(0.9, alphas) == [0.7, 0.8, 0.9]
    assert near(0.5, [0.5]) == [0.5]


@pytest.mark.parametrize("n_grid", [1, 2, 3, 5, 20, 23])
def test_nearly_every_exponent_is_near_a_coarse_one(n_grid):
    alphas = alpha_grid(n_grid)
    reached = {a for start in coarse(alphas) for a in near(start, alphas)}
    assert set(alphas) - reached <= {alphas[-1]}


@pytest.mark.parametrize("role", ["qkv", "gate_up"])
def test_refined_takes_the_modules_best_near_the_best_coarse_one_by_gram(
    problem, quantized, tokens, monkeypatch, role
):
    monkeypatch.setattr(streams, "N_REFINING_TOKENS", 30)
    p, alphas = problem(role), alpha_grid(20)
    weights, grids = list(p.weights.values()), list(p.grids.values())
    statistic, gram = p.statistics.mean_abs, p.statistics.gram
    start = search_scale(weights, grids, statistic, gram, coarse(alphas)).alpha
    p.scales = [scale_from_statistic(statistic, a) for a in near(start, alphas)]
    p.tokens = tokens[:1, :30]
    losses = p.losses()
    best = near(start, alphas)[losses.index(min(losses))]
    assert quantized("awq", REFINED).report(p.role.linears[0]).alpha == best != start


@pytest.mark.parametrize("preset", ["awq", "faq"])
def test_refined_leaves_o_and_down_to_the_gram_loss(quantized, load, preset):
    gram = quantized(preset, loaded=load(num_key_value_heads=4))
    refined = quantized(preset, REFINED, loaded=load(num_key_value_heads=4))
    assert gram.same_as(refined, "o_proj") and gram.same_as(refined, "down_proj")
    assert not gram.same_as(refined, "q_proj") and not gram.same_as(refined, "gate_proj")


def test_with_a_correction_refined_measures_on_the_quantized_stream(quantized):
    first = quantized("qep-awq", REFINED, "quant.correction.roles=[o]")
    plain = quantized("awq", REFINED)
    assert first.same_as(plain, "layers.0.self_attn.q_proj")
    assert not first.same_as(plain, "layers.3.self_attn.q_proj")


def test_without_candidates_refined_is_the_gram_loss(quantized):
    empty = "quant.search.n_grid=0"
    assert quantized("awq", REFINED, empty).same_as(quantized("awq", empty))
    fixed = "quant.preview.alpha=0.5"
    assert quantized("faq", REFINED, fixed).same_as(quantized("faq", fixed))
