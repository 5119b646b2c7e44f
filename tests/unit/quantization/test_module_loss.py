"""The reference's objective: equal to the Gram loss where it must be, and to a naive run of the model."""

import pytest
import torch

from faqbench.models import open_stream
from faqbench.quantization import assign_grids
from faqbench.quantization.grid import fake_quantize
from faqbench.quantization.module_loss import ModuleObjective
from faqbench.quantization.quadratic import halve
from faqbench.quantization.scale import gram_loss, scale_from_statistic

ALPHAS = [0.0, 0.25, 0.5, 0.75, 0.95]
MODULE = "quant.search.loss=module"


class Problem:
    """One role of the first block of a tiny model, with the statistics of its input."""

    def __init__(self, loaded, store, quant, tokens, role):
        self.loaded, self.role = loaded, loaded.architecture.role(role)
        self.block = loaded.architecture.block_modules(loaded.model)[0]
        grids = assign_grids(loaded.architecture, quant)
        self.grids = {n: grids[f"model.layers.0.{n}"] for n in self.role.linears}
        self.weights = {n: self.block.get_submodule(n).weight.float().clone() for n in self.role.linears}
        self.statistics = store.block(0)[role]
        self.scales = [scale_from_statistic(self.statistics.mean_abs, a) for a in ALPHAS]
        self.tokens = tokens

    @torch.inference_mode()
    def losses(self, batch_size=2):
        stream = open_stream(self.loaded.view, self.tokens, batch_size)
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


@pytest.mark.parametrize("preset", ["awq", "faq", "qep-awq"])
def test_tracing_changes_nothing(quantized, preset):
    traced = quantized(preset, MODULE, "quant.trace_windows=2")
    assert traced.same_as(quantized(preset, MODULE, "quant.trace_windows=0"))
    assert len(traced.result.blocks) == 4


def test_with_a_correction_it_measures_on_the_quantized_stream(quantized):
    first = quantized("qep-awq", MODULE, "quant.correction.roles=[o]")
    plain = quantized("awq", MODULE)
    assert first.same_as(plain, "layers.0.self_attn.q_proj")
    assert all(w.isfinite().all() for w in first.after.values())
    assert not first.same_as(plain, "layers.3.self_attn.q_proj")
