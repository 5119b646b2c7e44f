"""`loss=attention`: q, k and v by the output of attention on a sample, everything else by the Gram loss."""

import math

import pytest
import torch

from faqbench.models import open_stream
from faqbench.quantization import Calibration, assign_grids
from faqbench.quantization.module_loss import ModuleObjective
from faqbench.quantization.scale import scale_from_statistic
from faqbench.quantization.streams import Streams

ALPHAS = [i / 20 for i in range(20)]
ATTENTION, GRAM = "quant.search.loss=attention", "quant.search.loss=gram"


@pytest.fixture
def arrived(load, compose):
    """Return the streams of a method, arrived at the first block, with the model."""

    def make(tokens, *overrides, batch_size=2):
        loaded = load()
        quant = compose("model=tiny-llama", "quant=awq", *overrides).quant
        streams = Streams(loaded, quant, Calibration(tokens=tokens, batch_size=batch_size, select="all"))
        block = loaded.architecture.block_modules(loaded.model)[0]
        streams.arrive(block, block)
        return loaded, streams

    return make


@pytest.fixture
def problem(load, observed, compose):
    """Return weights, grids and candidate scales of qkv in the first block."""
    loaded = load()
    role = loaded.architecture.role("qkv")
    grids = assign_grids(loaded.architecture, compose("model=tiny-llama", "quant=awq").quant)
    block = loaded.architecture.block_modules(loaded.model)[0]
    weights = {n: block.get_submodule(n).weight.float().clone() for n in role.linears}
    mean_abs = observed(loaded).mean_abs(0, "qkv")
    scales = [scale_from_statistic(mean_abs, alpha) for alpha in ALPHAS]
    return weights, {n: grids[f"model.layers.0.{n}"] for n in role.linears}, scales


def words(n_windows, n_tokens):
    return torch.randint(0, 257, (n_windows, n_tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("n_windows", "n_tokens"), [(1, 512), (2, 256), (3, 170), (4, 128), (9, 128)])
def test_the_sample_is_512_tokens_of_four_windows_at_most(arrived, n_windows, n_tokens):
    tokens = words(n_windows, 600)
    loaded, streams = arrived(tokens)
    hidden = streams.objective(loaded.architecture.role("qkv")).stream.hidden
    assert hidden.shape[:2] == (min(n_windows, 4), n_tokens)
    whole = open_stream(loaded.view, tokens, 3).hidden
    assert torch.equal(hidden, whole[:4, :n_tokens])


def test_shorter_windows_are_taken_whole(arrived):
    loaded, streams = arrived(words(6, 40))
    assert streams.objective(loaded.architecture.role("qkv")).stream.hidden.shape[:2] == (4, 40)


@pytest.mark.parametrize("role", ["o", "gate_up", "down"])
def test_other_roles_have_the_gram_loss(arrived, tokens, role):
    loaded, streams = arrived(tokens)
    assert streams.objective(loaded.architecture.role(role)) is None


def test_only_qkv_differs_from_the_gram_loss(quantized):
    attention, gram = quantized("awq", ATTENTION), quantized("awq", GRAM)
    for linear in ("o_proj", "gate_proj", "up_proj", "down_proj"):
        assert attention.same_as(gram, linear)
    alphas = [[r.alpha for r in o.result.linears if r.role == "qkv"] for o in (attention, gram)]
    assert alphas[0] != alphas[1]


@torch.inference_mode()
def test_it_gives_up_candidates_and_has_the_losses_of_what_is_left(arrived, problem, tokens):
    weights, grids, scales = problem
    loaded, streams = arrived(tokens)
    sampled = streams.objective(loaded.architecture.role("qkv"))
    everything = ModuleObjective(stream=sampled.stream, block=sampled.block, role=sampled.role)
    found = sampled.losses(weights, grids, scales)
    wanted = everything.losses(weights, grids, scales)
    left = [i for i, loss in enumerate(found) if math.isfinite(loss)]
    assert len(left) == 5
    assert [found[i] for i in left] == pytest.approx([wanted[i] for i in left], rel=1e-5)
    assert min(found) <= sorted(wanted)[1] * (1 + 1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("n_candidates", [2, 3, 5])
def test_of_a_few_candidates_it_gives_up_none(arrived, problem, n_candidates):
    weights, grids, scales = problem
    loaded, streams = arrived(words(1, 40))
    losses = streams.objective(loaded.architecture.role("qkv")).losses(
        weights, grids, scales[:n_candidates]
    )
    assert len(losses) == n_candidates and all(map(math.isfinite, losses))


@torch.inference_mode()
def test_a_candidate_without_a_loss_does_not_win(arrived, problem, tokens):
    weights, grids, scales = problem
    loaded, streams = arrived(tokens)
    broken = [torch.full_like(scales[0], torch.nan), *scales[4:12], torch.full_like(scales[0], torch.nan)]
    losses = streams.objective(loaded.architecture.role("qkv")).losses(weights, grids, broken)
    assert not math.isfinite(losses[0]) and not math.isfinite(losses[-1])
    assert min(loss for loss in losses if not math.isnan(loss)) < math.inf


@torch.inference_mode()
def test_it_does_not_depend_on_the_batch_size(arrived, problem, tokens):
    found = []
    for batch_size in (1, 3, 5):
        loaded, streams = arrived(tokens, batch_size=batch_size)
        found.append(streams.objective(loaded.architecture.role("qkv")).losses(*problem))
    assert found[0] == found[1] == found[2]


def test_with_a_correction_it_measures_on_the_quantized_stream(quantized):
    first = quantized("qep-awq", ATTENTION, "quant.correction.roles=[o]")
    plain = quantized("awq", ATTENTION)
    assert first.same_as(plain, "layers.0.self_attn.q_proj")
    assert not first.same_as(plain, "layers.3.self_attn.q_proj")
    traced = quantized("qep-awq", ATTENTION, "quant.correction.roles=[o]", "quant.trace_windows=0")
    assert first.same_as(traced)


def test_a_method_that_searches_no_exponent_reads_no_sample(quantized):
    fixed = quantized("faq", ATTENTION, "quant.preview.alpha=0.5")
    assert fixed.same_as(quantized("faq", GRAM, "quant.preview.alpha=0.5"))
    empty = quantized("awq", ATTENTION, "quant.search.n_grid=0")
    assert empty.same_as(quantized("awq", GRAM, "quant.search.n_grid=0"))
