"""The reference's objective and `loss=attention` against the Gram loss and a naive run; ranking."""

import math

import numpy as np
import pytest
import torch

from faqbench.models import open_stream
from faqbench.quantization import Calibration, assign_grids
from faqbench.quantization.grid import fake_quantize
from faqbench.quantization.module_loss import ModuleObjective
from faqbench.quantization.reproducible import halve
from faqbench.quantization.scale import contenders, first_smallest, gram_loss, scale_from_importance
from faqbench.quantization.streams import Streams

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
        self.scales = [scale_from_importance(self.statistics.mean_abs, a) for a in ALPHAS]
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


MARGIN = 0.003


class Table:
    """A table of losses [candidates, rows] that counts what is read of it."""

    def __init__(self, losses):
        self.losses = torch.as_tensor(losses, dtype=torch.float64)
        self.n_read = 0

    def __len__(self):
        return self.losses.shape[1]

    def __call__(self, candidates, rows):
        self.n_read += len(candidates) * len(rows)
        return self.losses[torch.tensor(candidates)][:, rows]

    def ranked(self, first=0, n_samples=6):
        return contenders(self, len(self.losses), first=first, margin=MARGIN, n_samples=n_samples)

    def winners(self):
        totals = self.losses.sum(dim=1)
        return [i for i, total in enumerate(totals) if total <= totals.min() * (1 + MARGIN)]


def unequal_rows(seed, tail, n_candidates=20, n_rows=600):
    """Losses whose rows differ by a heavy-tailed factor of their own, and candidates by a few per cent."""
    generator = np.random.default_rng(seed)
    rows = generator.pareto(tail, n_rows) + 0.1
    candidates = 1 + 0.04 * np.abs(np.arange(n_candidates) - generator.uniform(0, n_candidates))
    noise = generator.lognormal(0, 0.15, (n_candidates, n_rows))
    return Table(candidates[:, None] * rows * noise)


@pytest.mark.parametrize("tail", [0.8, 1.5, 4.0])
@pytest.mark.parametrize("seed", range(20))
def test_whoever_may_win_stays(seed, tail):
    table = unequal_rows(seed, tail)
    kept = table.ranked(first=seed % 20)
    assert set(table.winners()) <= set(kept)
    assert kept == sorted(kept)


def test_most_losses_are_not_taken_in_full():
    table = unequal_rows(0, 4.0)
    table.ranked(first=8)
    assert table.n_read < table.losses.numel() / 2


@pytest.mark.parametrize("row", range(0, 600, 37))
def test_a_candidate_that_wins_by_a_single_row_stays(row):
    """On all rows but one it loses clearly; a sample that misses that row would rule it out."""
    losses = torch.ones(3, 600, dtype=torch.float64)
    losses[1] = 1.2
    losses[:, row] = torch.tensor([500.0, 100.0, 500.0])
    assert Table(losses).ranked() == [1]


def test_the_heavy_row_may_be_that_of_a_later_leader():
    """The first candidate is light where the second one, best on the sampled rows, is heavy."""
    losses = torch.ones(3, 600, dtype=torch.float64) * torch.tensor([[1.5], [1.0], [1.3]])
    losses[1, 321] = 400.0
    assert Table(losses).ranked() == [2]


def test_one_sample_takes_everything():
    table = unequal_rows(3, 1.5)
    assert table.ranked(n_samples=1) == table.winners()


def test_a_candidate_without_a_loss_stays():
    losses = torch.ones(4, 600, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    losses[2, ::50] = torch.nan
    assert Table(losses).ranked() == [0, 2]
    assert Table(torch.full((4, 600), torch.nan)).ranked() == [0, 1, 2, 3]


def test_the_first_of_equals_is_smallest_and_nan_never():
    assert first_smallest([2.0, 1.0, 1.0]) == 1
    assert first_smallest([float("nan"), 3.0]) == 1


EXPONENTS = [i / 20 for i in range(20)]
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
def attention_problem(load, observed, compose):
    """Return weights, grids and candidate scales of qkv in the first block."""
    loaded = load()
    role = loaded.architecture.role("qkv")
    grids = assign_grids(loaded.architecture, compose("model=tiny-llama", "quant=awq").quant)
    block = loaded.architecture.block_modules(loaded.model)[0]
    weights = {n: block.get_submodule(n).weight.float().clone() for n in role.linears}
    mean_abs = observed(loaded).mean_abs(0, "qkv")
    scales = [scale_from_importance(mean_abs, alpha) for alpha in EXPONENTS]
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
def test_it_gives_up_candidates_and_has_the_losses_of_what_is_left(arrived, attention_problem, tokens):
    weights, grids, scales = attention_problem
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
def test_of_a_few_candidates_it_gives_up_none(arrived, attention_problem, n_candidates):
    weights, grids, scales = attention_problem
    loaded, streams = arrived(words(1, 40))
    losses = streams.objective(loaded.architecture.role("qkv")).losses(
        weights, grids, scales[:n_candidates]
    )
    assert len(losses) == n_candidates and all(map(math.isfinite, losses))


@torch.inference_mode()
def test_a_candidate_without_a_loss_does_not_win(arrived, attention_problem, tokens):
    weights, grids, scales = attention_problem
    loaded, streams = arrived(tokens)
    broken = [torch.full_like(scales[0], torch.nan), *scales[4:12], torch.full_like(scales[0], torch.nan)]
    losses = streams.objective(loaded.architecture.role("qkv")).losses(weights, grids, broken)
    assert not math.isfinite(losses[0]) and not math.isfinite(losses[-1])
    assert min(loss for loss in losses if not math.isnan(loss)) < math.inf


@torch.inference_mode()
def test_the_attention_loss_does_not_depend_on_the_batch_size(arrived, attention_problem, tokens):
    found = []
    for batch_size in (1, 3, 5):
        loaded, streams = arrived(tokens, batch_size=batch_size)
        found.append(streams.objective(loaded.architecture.role("qkv")).losses(*attention_problem))
    assert found[0] == found[1] == found[2]


def test_with_a_correction_the_attention_loss_is_measured_on_the_quantized_stream(quantized):
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
