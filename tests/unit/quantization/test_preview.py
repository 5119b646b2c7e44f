"""FAQ's statistic, against METHODS.md's formula written in numpy."""

from itertools import product

import numpy as np
import pytest
import torch

from faqbench.quantization.preview import Later, preview_statistic

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
    found = preview_statistic(vectors[0], Later(vectors=vectors[1:], errors=ERRORS), settings)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_without_later_blocks_the_statistic_is_the_blocks_own_to_the_bit(vectors, options):
    assert torch.equal(preview_statistic(vectors[0], Later(), options()), vectors[0])


@pytest.mark.parametrize("changes", [{"window": 0}, {"gamma": 1.0}])
@pytest.mark.parametrize("fuse", FUSES)
def test_a_preview_that_is_off_returns_the_blocks_own_to_the_bit(vectors, options, changes, fuse):
    settings = options(fuse=fuse, norm="mean", **changes)
    assert torch.equal(preview_statistic(vectors[0], Later(vectors=vectors[1:]), settings), vectors[0])


def test_only_the_window_is_read(vectors, options):
    settings = options(window=2, gamma=0.5)
    short = preview_statistic(vectors[0], Later(vectors=vectors[1:3]), settings)
    assert torch.equal(preview_statistic(vectors[0], Later(vectors=vectors[1:]), settings), short)


@pytest.mark.parametrize(("norm", "fuse"), list(product(NORMS, ["convex", "geometric"])))
def test_blending_a_vector_with_itself_gives_it_back(vectors, options, norm, fuse):
    settings = options(window=3, gamma=0.4, norm=norm, fuse=fuse)
    torch.testing.assert_close(
        preview_statistic(vectors[0], Later(vectors=[vectors[0]] * 3), settings), vectors[0]
    )


@pytest.mark.parametrize("norm", ["mean", "max"])
def test_with_a_norm_the_size_of_later_blocks_does_not_matter(vectors, options, norm):
    settings = options(window=3, gamma=0.5, norm=norm)
    larger = [v * 1000 for v in vectors[1:]]
    torch.testing.assert_close(
        preview_statistic(vectors[0], Later(vectors=larger), settings),
        preview_statistic(vectors[0], Later(vectors=vectors[1:]), settings),
    )


@pytest.mark.parametrize(("norm", "fuse"), list(product(NORMS, FUSES)))
def test_blocks_that_are_never_active_give_a_finite_statistic(vectors, options, norm, fuse):
    settings = options(window=2, gamma=0.5, norm=norm, fuse=fuse)
    zeros = torch.zeros(16)
    for current, later in ((zeros, vectors[1:]), (vectors[0], [zeros, zeros]), (zeros, [zeros])):
        found = preview_statistic(current, Later(vectors=later), settings)
        assert found.isfinite().all() and (found >= 0).all()


def test_where_nothing_errs_the_errors_weigh_all_alike(vectors, options):
    settings = options(window=3, gamma=0.5)
    later = Later(vectors=vectors[1:], errors=(0.0, 0.0, 0.0))
    torch.testing.assert_close(
        preview_statistic(vectors[0], later, settings.model_copy(update={"weights": "error"})),
        preview_statistic(vectors[0], later, settings),
    )
