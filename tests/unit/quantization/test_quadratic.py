"""Half of a Gram matrix says what the whole one says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faqbench.quantization import quadratic
from faqbench.quantization.quadratic import halve, quadratic_form, row_chunks


def problem(seed, rows, in_features):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * in_features, in_features, generator=generator)
    x *= torch.randn(in_features, generator=generator).exp()
    return torch.randn(rows, in_features, generator=generator), x.T @ x / len(x)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(1, 70), st.integers(1, 80))
def test_half_of_the_products_give_the_whole_form(seed, rows, in_features, width):
    error, gram = problem(seed, rows, in_features)
    wanted = float((error.double() @ gram.double() * error.double()).sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quadratic._BLOCK_COLUMNS, "cpu", width)
        assert float(quadratic_form(error, halve(gram))) == pytest.approx(wanted, rel=1e-4)


def test_bfloat16_products_are_good_to_a_thousandth():
    error, gram = problem(0, 200, 256)
    exact, coarse = (quadratic_form(error, halve(gram, t)) for t in (torch.float32, torch.bfloat16))
    assert float(coarse) == pytest.approx(float(exact), rel=2e-3)


def test_the_gram_matrix_is_left_as_it_was():
    _, gram = problem(0, 1, 300)
    before = gram.clone()
    halve(gram)
    assert torch.equal(gram, before)


def test_chunks_of_rows_are_the_whole_weight_in_order(monkeypatch):
    monkeypatch.setitem(quadratic._CHUNK_ELEMENTS, "cpu", 5 * 64)
    weight, _ = problem(0, 24, 64)
    chunks = row_chunks(weight)
    assert torch.equal(torch.cat(chunks), weight)
    assert [len(c) for c in chunks] == [5, 5, 5, 5, 4]
