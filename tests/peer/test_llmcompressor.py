"""GPTQ, AWQ, SmoothQuant, LAE and rotations of vLLM's llm-compressor, on fixed tensors and on the CPU.

Both are called below its recipes, where they are functions of tensors: `quantize_weight` for GPTQ, and
the modifier's search for AWQ. What differs, and how each test makes the two comparable:

    zero points   ours: round(w / scale) + zero; theirs: round(w / scale + zero). They part only where
                  w / scale is half-way between two whole numbers, so a handful of codes may differ.
    group scales  theirs come from outside, always of the uncorrected weights. That is our GPTQ per row
                  and with act_order; our exact groups have no counterpart there and are not compared.
    act order     theirs orders columns by H's diagonal with an unstable sort; ours breaks ties by
                  position. Fixed tensors without ties.
    singular H    theirs falls back to rounding to nearest; ours raises the damping. Not compared.
    AWQ's loss    theirs runs the parent module on all tokens; ours, on the same linears, is taken
                  through the Gram matrix. The parent of this test adds its linears' squared errors up,
                  so both minimise the same number.
    AWQ's grid    theirs is 0, 1/(n-1), ..., 1; ours 0, 1/n, ..., (n-1)/n. The test hands over theirs.
    symmetric     theirs takes max|w| / (2^(bits-1) - 0.5) as the scale, ours, as AutoAWQ does,
                  max|w| / (2^(bits-1) - 1). GPTQ is handed our scale; AWQ is compared asymmetric only.

Checked with llmcompressor 0.14.0.1 and compressed-tensors 0.19.0. Their pins exclude our transformers
(5.23; theirs ends at 5.17), and these functions do not need it: install them with `pip install --no-deps`.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from faqbench.config.experiment import GPTQSection
from faqbench.models.hadamard import hadamard
from faqbench.quantization import Grid
from faqbench.quantization.gptq import gptq_round
from faqbench.quantization.grid import group_parameters
from faqbench.quantization.scale import lae_scale, search_scale, smoothquant_scale

pytestmark = [
    pytest.mark.peer,
    # Deprecations in the peer's own code are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]
pytest.importorskip("llmcompressor", reason="an optional extra: see the module's docstring")
ROWS, COLUMNS = 48, 256


def fixed(seed):
    """Return a weight and correlated inputs whose channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(COLUMNS, COLUMNS, generator=generator) / 16
    size = torch.randn(COLUMNS, generator=generator).mul(1.5).exp()
    x = torch.randn(4 * COLUMNS, COLUMNS, generator=generator) @ mix * size
    return torch.randn(ROWS, COLUMNS, generator=generator), x


def arguments(grid, *, act_order=False):
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(
        num_bits=grid.bits,
        type="int",
        symmetric=grid.symmetric,
        strategy="channel" if grid.group_size == -1 else "group",
        group_size=None if grid.group_size == -1 else grid.group_size,
        actorder="weight" if act_order else None,
    )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("group_size", "act_order"), [(-1, False), (-1, True), (64, True)])
def test_gptq_gives_the_peers_weights(bits, symmetric, group_size, act_order):
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    grid = Grid(bits=bits, group_size=group_size, symmetric=symmetric)
    weight, x = fixed(0)
    hessian = x.T @ x / len(x)
    settings = GPTQSection(damping=0.01, act_order=act_order, block_size=128)
    result = gptq_round(weight, hessian, grid, settings)
    ours = (result.codes * result.parameters.scale.unsqueeze(-1)).flatten(1)

    grouped = weight.view(ROWS, -1, grid.group_width(COLUMNS))
    parameters = group_parameters(grouped, grid)
    zero = parameters.zero_point
    # Their signed codes start at -2^(bits-1), ours at 0.
    shifted = torch.zeros_like(parameters.scale) if zero is None else zero - 2 ** (bits - 1)
    theirs, _, fell_back = quantize_weight(
        weight.clone().unsqueeze(0),
        hessian.clone().unsqueeze(0),
        parameters.scale.unsqueeze(0),
        shifted.unsqueeze(0),
        None,
        arguments(grid, act_order=act_order),
        blocksize=128,
        percdamp=0.01,
    )
    assert not fell_back.any()
    differing = (ours - theirs[0]).abs() > 1e-4
    assert int(differing.sum()) <= 0.01 * weight.numel()
    error, reference = ((w - weight) @ x.T for w in (ours, theirs[0]))
    assert float(error.square().sum()) == pytest.approx(float(reference.square().sum()), rel=0.01)


class Parent(nn.Module):
    """Linears that share an input, with their outputs side by side."""

    def __init__(self, *weights):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(COLUMNS, len(w), bias=False) for w in weights)
        for linear, weight in zip(self.linears, weights, strict=True):
            linear.weight.data.copy_(weight)

    def forward(self, x):
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_awq_chooses_the_peers_scales(seed):
    from compressed_tensors.quantization import (
        QuantizationScheme,
        disable_quantization,
        initialize_module_for_quantization,
    )
    from llmcompressor.modifiers.quantization.calibration import initialize_observer
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.awq.mappings import ResolvedMapping
    from llmcompressor.pipelines.cache import IntermediatesCache

    grid = Grid(bits=3, group_size=64, symmetric=False)
    (first, x), (second, _) = fixed(seed), fixed(seed + 10)
    alphas = [i / 20 for i in range(21)]
    gram, importance = x.T @ x / len(x), x.abs().mean(0)
    ours = search_scale([first, second], [grid, grid], importance, gram, alphas)

    parent = Parent(first, second)
    for linear in parent.linears:
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments(grid))
        initialize_module_for_quantization(linear, scheme)
        initialize_observer(linear, "weight")
        disable_quantization(linear)  # as its recipe does: weights are rounded once, by the search
    modifier = AWQModifier(duo_scaling=False, n_grid=21, mappings=[])
    mapping = ResolvedMapping("norm", nn.Identity(), list(parent.linears), ["a", "b"], parent, "p")
    cache = IntermediatesCache(None, None)
    cache.append({"x": x})
    modifier._parent_args_cache = {parent: cache}
    modifier._smooth_activation_stats = {"norm": [x.abs().sum(0), torch.tensor(len(x))]}
    before = {linear: linear.weight.clone() for linear in parent.linears}
    theirs = modifier._compute_best_scale(mapping, [parent(x)], before)
    torch.testing.assert_close(ours.input_scale, theirs, rtol=1e-4, atol=1e-6)


def smoothing(algorithm, largest, weights, **more):
    """Return the peer's scale of linears that share an input, from the largest |x| of each channel."""
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    modifier = SmoothQuantModifier(algorithm=algorithm, mappings=[], **more)
    linears = [nn.Linear(COLUMNS, len(w), bias=False) for w in weights]
    for linear, weight in zip(linears, weights, strict=True):
        linear.weight.data.copy_(weight)
    with torch.no_grad():
        return modifier._calculate_smoothing_scales(linears, largest)


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_smoothquant_gives_the_peers_scales_up_to_a_constant(alpha):
    (first, x), (second, _) = fixed(0), fixed(10)
    quant = SimpleNamespace(smoothing=SimpleNamespace(alpha=alpha))
    largest = x.abs().amax(dim=0)
    ours = smoothquant_scale(largest, [first, second], quant)
    theirs = smoothing("smoothquant", largest, [first, second], smoothing_strength=alpha)
    # Theirs takes twice the largest |w|, the width of a symmetric range.
    torch.testing.assert_close(ours, theirs * 2 ** (1 - alpha), rtol=1e-5, atol=0)


def test_lae_gives_the_peers_logarithmic_equalization():
    first, x = fixed(0)
    largest = x.abs().amax(dim=0).clamp(min=0.02)  # where our smallest scale, 0.01, does not count
    theirs = smoothing("log_equalization", largest, [first])
    torch.testing.assert_close(lae_scale(largest, [first], None), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("order", [2, 64, 128])
def test_hadamard_matrices_of_powers_of_two_are_the_peers(order):
    from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix

    assert torch.equal(hadamard(order), deterministic_hadamard_matrix(order, dtype=torch.float64))
