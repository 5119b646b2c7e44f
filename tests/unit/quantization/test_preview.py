"""FAQ's importance against METHODS.md's formula in numpy, and each source of it against preview.py's."""

from itertools import product

import numpy as np
import pytest
import torch

from faqbench.quantization import assign_grids
from faqbench.quantization.grid import fake_quantize
from faqbench.quantization.preview import Later, Lookahead, n_window_cuts, preview_importance, pull_back

WEIGHTS = {
    "uniform": lambda j, e: 1.0,
    "linear": lambda j, e: 1 / j,
    "geometric": lambda j, e: 2.0**-j,
    "error": lambda j, e: e,
}
ERRORS = (0.3, 0.05, 0.9)
NORMS = {"none": lambda a: 1.0, "mean": np.mean, "max": np.max}
FUSES = {
    "convex": lambda a, p, gamma: gamma * a + (1 - gamma) * p,
    "geometric": lambda a, p, gamma: a**gamma * p ** (1 - gamma),
    "max": lambda a, p, gamma: np.maximum(a, (1 - gamma) * p),
}


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(16, generator=generator) * size for size in (1.0, 3.0, 0.5, 9.0)]


@pytest.fixture
def options(compose):
    preview = compose("model=tiny-llama", "quant=faq").quant.preview
    return lambda **changes: preview.model_copy(update=changes)


@pytest.mark.parametrize(("weights", "norm", "fuse"), list(product(WEIGHTS, NORMS, FUSES)))
def test_every_combination_of_options_is_its_formula(vectors, options, weights, norm, fuse):
    current, *later = [v.double().numpy() for v in vectors]
    w = np.array([WEIGHTS[weights](j, e) for j, e in enumerate(ERRORS, start=1)])
    w /= w.sum()
    size = NORMS[norm]
    blend = sum(wj * a * size(current) / size(a) for wj, a in zip(w, later, strict=True))
    expected = FUSES[fuse](current, blend, 0.6)
    settings = options(window=3, gamma=0.6, weights=weights, norm=norm, fuse=fuse)
    found = preview_importance(vectors[0], Later(vectors=vectors[1:], errors=ERRORS), settings)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_without_later_blocks_the_statistic_is_the_blocks_own_to_the_bit(vectors, options):
    assert torch.equal(preview_importance(vectors[0], Later(), options()), vectors[0])


@pytest.mark.parametrize("changes", [{"window": 0}, {"gamma": 1.0}])
@pytest.mark.parametrize("fuse", FUSES)
def test_a_preview_that_is_off_returns_the_blocks_own_to_the_bit(vectors, options, changes, fuse):
    settings = options(fuse=fuse, norm="mean", **changes)
    assert torch.equal(preview_importance(vectors[0], Later(vectors=vectors[1:]), settings), vectors[0])


def test_only_the_window_is_read(vectors, options):
    settings = options(window=2, gamma=0.5)
    short = preview_importance(vectors[0], Later(vectors=vectors[1:3]), settings)
    assert torch.equal(preview_importance(vectors[0], Later(vectors=vectors[1:]), settings), short)


@pytest.mark.parametrize(("norm", "fuse"), list(product(NORMS, ["convex", "geometric"])))
def test_blending_a_vector_with_itself_gives_it_back(vectors, options, norm, fuse):
    settings = options(window=3, gamma=0.4, norm=norm, fuse=fuse)
    torch.testing.assert_close(
        preview_importance(vectors[0], Later(vectors=[vectors[0]] * 3), settings), vectors[0]
    )


@pytest.mark.parametrize("norm", ["mean", "max"])
def test_with_a_norm_the_size_of_later_blocks_does_not_matter(vectors, options, norm):
    settings = options(window=3, gamma=0.5, norm=norm)
    larger = [v * 1000 for v in vectors[1:]]
    torch.testing.assert_close(
        preview_importance(vectors[0], Later(vectors=larger), settings),
        preview_importance(vectors[0], Later(vectors=vectors[1:]), settings),
    )


@pytest.mark.parametrize(("norm", "fuse"), list(product(NORMS, FUSES)))
def test_blocks_that_are_never_active_give_a_finite_statistic(vectors, options, norm, fuse):
    settings = options(window=2, gamma=0.5, norm=norm, fuse=fuse)
    zeros = torch.zeros(16)
    for current, later in ((zeros, vectors[1:]), (vectors[0], [zeros, zeros]), (zeros, [zeros])):
        found = preview_importance(current, Later(vectors=later), settings)
        assert found.isfinite().all() and (found >= 0).all()


def test_where_nothing_errs_the_errors_weigh_all_alike(vectors, options):
    settings = options(window=3, gamma=0.5)
    later = Later(vectors=vectors[1:], errors=(0.0, 0.0, 0.0))
    torch.testing.assert_close(
        preview_importance(vectors[0], later, settings.model_copy(update={"weights": "error"})),
        preview_importance(vectors[0], later, settings),
    )


NEXT = "quant.preview.source=next_linear"
ROLES = ["qkv", "o", "gate_up", "down"]


@pytest.fixture
def look(load, observed, compose):
    """Return the vectors that one role of one block looks ahead to, and what they are made of."""
    loaded = load()
    store = observed(loaded)
    blocks = list(loaded.architecture.block_modules(loaded.model))

    quant = compose("model=tiny-llama", "quant=faq").quant
    grids = assign_grids(loaded.architecture, quant)

    def make(role, block, window, source="next_linear", drift=(), **options):
        options |= {"window": window, "source": source}
        ahead = Lookahead(store, loaded.view, grids, quant.preview.model_copy(update=options))
        later = ahead.later(loaded.architecture.role(role), block, drift)
        return later.errors if options.get("weights") == "error" else later.vectors

    make.store, make.blocks, make.architecture = store, blocks, loaded.architecture
    make.grid = next(iter(grids.values()))
    return make


def mean_over_outputs(importance, weight):
    """The formula, one input channel at a time."""
    return torch.stack([(importance * weight[:, c].abs()).mean() for c in range(weight.shape[1])])


def per_value_head(importance):
    """o reads 4 query heads of width 16; heads 0 and 1 share the first of the 2 value heads."""
    first, second, third, fourth = importance.split(16)
    return torch.cat([(first + second) / 2, (third + fourth) / 2])


def test_each_role_looks_at_the_linear_that_reads_its_output(look):
    a, layer = look.store.mean_abs, look.blocks[1]
    expected = {
        "qkv": mean_over_outputs(per_value_head(a(1, "o")), layer.self_attn.v_proj.weight),
        "o": mean_over_outputs(a(1, "gate_up"), layer.self_attn.o_proj.weight),
        "gate_up": mean_over_outputs(a(1, "down"), layer.mlp.up_proj.weight),
        "down": mean_over_outputs(a(2, "qkv"), layer.mlp.down_proj.weight),
    }
    for role, vector in expected.items():
        (found,) = look(role, 1, 1)
        torch.testing.assert_close(found, vector)


def test_later_vectors_are_brought_back_through_every_linear_between(look):
    a, layer = look.store.mean_abs, look.blocks[0]
    through_up = mean_over_outputs(a(0, "down"), layer.mlp.up_proj.weight)
    through_down = mean_over_outputs(a(1, "qkv"), layer.mlp.down_proj.weight)
    expected = [
        mean_over_outputs(a(0, "gate_up"), layer.self_attn.o_proj.weight),
        mean_over_outputs(through_up, layer.self_attn.o_proj.weight),
        mean_over_outputs(
            mean_over_outputs(through_down, layer.mlp.up_proj.weight), layer.self_attn.o_proj.weight
        ),
    ]
    for found, vector in zip(look("o", 0, 3), expected, strict=True):
        torch.testing.assert_close(found, vector)


@pytest.mark.parametrize("role", ROLES)
def test_every_vector_has_the_width_of_the_roles_own_input_and_is_positive(look, role):
    for block in range(4):
        vectors = look(role, block, 9)
        assert len(vectors) == min(9, 4 * (3 - block) + 3 - ROLES.index(role))
        for vector in vectors:
            assert vector.shape == look.store.mean_abs(block, role).shape
            assert vector.isfinite().all() and (vector > 0).all()


def test_the_same_role_looks_at_itself_in_later_blocks(look):
    vectors = look("down", 1, 5, source="same_role")
    assert [v.tolist() for v in vectors] == [
        look.store.mean_abs(block, "down").tolist() for block in (2, 3)
    ]


def test_pulling_back_is_linear_in_the_statistic_and_blind_to_signs(look):
    weight = look.blocks[0].mlp.up_proj.weight
    a, b = look.store.mean_abs(0, "down"), look.store.mean_abs(1, "down")
    torch.testing.assert_close(
        pull_back(a + 2 * b, -weight), pull_back(a, weight) + 2 * pull_back(b, weight)
    )


@pytest.mark.parametrize(("window", "cuts"), [(0, 0), (1, 1), (4, 1), (5, 2), (99, 4)])
def test_blocks_whose_window_is_cut_are_counted(look, compose, window, cuts):
    preview = compose("model=tiny-llama", "quant=faq", NEXT, f"window={window}").quant.preview
    assert n_window_cuts(look.architecture, preview) == cuts


PREVIEWS = {
    "next_linear": (NEXT,),
    "consumers": ("quant.preview.source=consumers",),
    "error": ("quant.preview.weights=error",),
    "quantized": ("quant.preview.stream=quantized",),
}


@pytest.mark.parametrize("preview", PREVIEWS.values(), ids=PREVIEWS)
@pytest.mark.parametrize("override", ["gamma=1", "window=0"])
def test_without_a_preview_it_is_awq_bit_for_bit(quantized, override, preview):
    assert quantized("faq", *preview, override).same_as(quantized("awq"))


@pytest.mark.parametrize("preview", list(PREVIEWS.values())[1:], ids=list(PREVIEWS)[1:])
@pytest.mark.parametrize("family", ["gemma3", "phi3"])
def test_every_preview_is_another_method_on_every_kind_of_block(load, quantized, family, preview):
    strong = ("gamma=0.0", "quant.preview.norm=mean")
    outcome = quantized("faq", *strong, *preview, loaded=load(family))
    assert all(w.isfinite().all() for w in outcome.after.values())
    assert not outcome.same_as(quantized("faq", *strong, loaded=load(family)))


def test_consumers_weigh_what_they_read_by_the_columns_of_all_their_linears(look):
    layer = look.blocks[1]
    both = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
    taken_up = look.store.mean_abs(1, "gate_up") * both.square().mean(dim=0).sqrt()
    (found,) = look("o", 1, 1, source="consumers")
    torch.testing.assert_close(found, mean_over_outputs(taken_up, layer.self_attn.o_proj.weight))


def test_errors_are_those_of_plain_rounding_under_uncorrelated_inputs(look):
    found = look("gate_up", 0, 2, source="same_role", weights="error")
    for block, error in zip((1, 2), found, strict=True):
        layer, x = look.blocks[block].mlp, look.store.mean_abs(block, "gate_up").diag()
        weights = [layer.gate_proj.weight, layer.up_proj.weight]
        changes = [fake_quantize(w, look.grid) - w for w in weights]
        wrong = sum((change @ x).square().sum() for change in changes)
        assert error == pytest.approx(float(wrong / sum((w @ x).square().sum() for w in weights)))


def test_drift_multiplies_the_vectors_of_the_block_it_is_of(look):
    roles, n = look.architecture.roles, 3
    drift = [{r.name: torch.tensor(float(2 + k)) for r in roles} for k in range(n)]
    plain = look("down", 1, 2, source="same_role")
    moved = look("down", 1, 2, source="same_role", drift=drift)
    assert [m.tolist() for m in moved] == [(plain[0] * 3).tolist(), (plain[1] * 4).tolist()]
    (own,) = look("qkv", 1, 1, drift=drift)  # o of the same block
    torch.testing.assert_close(own, 2 * look("qkv", 1, 1)[0])


def test_the_quantized_stream_shows_the_first_block_what_full_precision_does(quantized):
    faq = quantized("faq", "gamma=0.0")
    drifted = quantized("faq", "gamma=0.0", *PREVIEWS["quantized"])
    assert drifted.same_as(faq, "layers.0.") and not drifted.same_as(faq, "layers.1.")
