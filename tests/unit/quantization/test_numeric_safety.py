"""Weights and activations that break careless code; results that no number of threads changes."""

import pytest
import torch

from faqbench.config import UserError
from faqbench.quantization import quantize
from faqbench.quantization.gptq import gptq_round
from faqbench.quantization.grid import Grid
from faqbench.quantization.reproducible import damped_cholesky, dot, one_thread, total
from faqbench.quantization.scale import search_scale

METHODS = ["rtn", "awq", "faq", "gptq", "qep", "loaq", "qep-gptq"]


def is_finite(outcome):
    numbers = [r.relative_error or 0.0 for r in outcome.result.linears]
    weights_are = all(w.isfinite().all() for w in outcome.after.values())
    return weights_are and bool(torch.tensor(numbers).isfinite().all())


def norm(loaded, block=1):
    return loaded.model.model.layers[block].input_layernorm.weight


def weight(loaded, name="mlp.down_proj", block=1):
    return loaded.model.model.layers[block].get_submodule(name).weight


@pytest.mark.parametrize("method", METHODS)
def test_channels_that_are_never_active_give_finite_weights(load, quantized, method):
    loaded = load()
    norm(loaded)[:40] = 0
    assert is_finite(quantized(method, loaded=loaded))


@pytest.mark.parametrize("method", METHODS)
def test_a_role_whose_input_is_always_zero_gives_finite_weights(load, quantized, method):
    loaded = load()
    norm(loaded)[:] = 0
    assert is_finite(quantized(method, loaded=loaded))


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_zeros_give_finite_weights(load, quantized, method):
    loaded = load()
    weight(loaded)[3, 32:64] = 0
    weight(loaded)[5] = 0
    assert is_finite(quantized(method, loaded=loaded))


@pytest.mark.parametrize("method", ["rtn", "awq", "faq"])
def test_groups_of_zeros_stay_zeros_where_no_error_is_moved(load, quantized, method):
    loaded = load()
    weight(loaded)[3, 32:64] = 0
    weight(loaded)[5] = 0
    quantized(method, loaded=loaded)
    assert not weight(loaded)[3, 32:64].any() and not weight(loaded)[5].any()


@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("method", METHODS)
def test_constant_rows_give_finite_weights(load, quantized, method, symmetric):
    loaded = load()
    weight(loaded)[2], weight(loaded)[4] = 0.3, -0.3
    assert is_finite(quantized(method, f"symmetric={symmetric}", loaded=loaded))


@pytest.mark.parametrize("method", METHODS)
def test_huge_outliers_in_weights_and_channels_give_finite_weights(load, quantized, method):
    loaded = load()
    weight(loaded)[0, 0] = 1e6
    norm(loaded)[7] = 1e6
    assert is_finite(quantized(method, loaded=loaded))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_models_give_finite_weights_of_their_own_dtype(load, quantized, method, dtype):
    outcome = quantized(method, loaded=load(dtype=dtype))
    assert is_finite(outcome)
    assert {w.dtype for w in outcome.after.values()} == {dtype}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_are_refused_naming_block_and_linear(load, observed, value):
    loaded = load()
    norm(loaded, block=2)[0] = value
    with pytest.raises(UserError, match=r"self_attn\.q_proj in block 2 .*NaN or infinity"):
        observed(loaded)


def test_a_nan_that_arises_inside_a_block_is_refused_there(load, observed):
    loaded = load()
    weight(loaded, "mlp.up_proj", block=1)[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"mlp\.down_proj in block 1"):
        observed(loaded)


@pytest.mark.parametrize("select", ["all", "drop_first", "norm_cap"])
def test_a_silent_role_has_finite_statistics_however_tokens_count(load, observed, select):
    loaded = load()
    norm(loaded)[:] = 0
    assert not observed(loaded, select=select).block(1)["qkv"].gram.any()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_fit_their_type_at_every_width(bits, symmetric):
    grid = Grid(bits=bits, group_size=16, symmetric=symmetric)
    w = torch.randn(8, 32, generator=torch.Generator().manual_seed(bits)) * 10.0
    q = quantize(w, grid)
    low, high = grid.code_range
    assert low <= int(q.qvalue.min()) and int(q.qvalue.max()) <= high
    assert (q.dequantize() - w).abs().max() <= q.scale.max() * 1.001


CPU = torch.device("cpu")
GRID = Grid(bits=3, group_size=64, symmetric=False)


@pytest.fixture
def with_threads():
    """Call a function on several numbers of threads and return its results."""
    before = torch.get_num_threads()

    def call(function):
        results = []
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(function())
        return results

    yield call
    torch.set_num_threads(before)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_equal(results):
    return all(torch.equal(torch.as_tensor(r), torch.as_tensor(results[0])) for r in results)


@pytest.fixture
def hessian():
    x = numbers(2000, 512)
    return x.T @ x / len(x)


@pytest.mark.parametrize("shape", [(4, 256, 576), (40000, 30), (1, 100000)])
def test_a_total_is_that_of_one_thread(with_threads, shape):
    values = numbers(*shape)
    results = with_threads(lambda: total(values))
    assert all_equal(results)
    assert float(results[0]) == pytest.approx(float(values.double().sum()), abs=1e-2)


def test_a_plain_sum_is_not(with_threads):
    values = numbers(1024, 1024)
    assert not all_equal(with_threads(values.sum))


def test_a_product_is_that_of_one_thread(with_threads):
    a, b = numbers(1000, 576), numbers(1000, 576, seed=1)
    results = with_threads(lambda: dot(a, b))
    assert all_equal(results)
    assert float(results[0]) == pytest.approx(float((a.double() * b.double()).sum()), abs=1e-2)


def test_one_thread_gives_the_threads_back_also_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), one_thread(CPU):
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_gptq_rounds_alike_on_any_number_of_threads(with_threads, hessian, compose):
    weight, settings = numbers(300, 512, seed=2), compose("quant=gptq").quant.gptq
    assert all_equal(with_threads(lambda: gptq_round(weight, hessian, GRID, settings).codes))


def test_a_correction_factors_alike_on_any_number_of_threads(with_threads, hessian):
    assert all_equal(with_threads(lambda: damped_cholesky(hessian, 0.01, torch.float64)[0]))


def test_a_search_chooses_alike_on_any_number_of_threads(with_threads, hessian):
    weight, importance = numbers(1024, 512, seed=3), numbers(512, seed=4).abs()

    def search():
        return search_scale([weight], [GRID], importance, hessian, [0.0, 0.3, 0.6, 0.9]).alpha

    assert all_equal(with_threads(search))
