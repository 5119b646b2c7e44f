"""Nothing that decides a record depends on how many threads compute it."""

import pytest
import torch

from faqbench.quantization.gptq import gptq_round
from faqbench.quantization.grid import Grid
from faqbench.quantization.reproducible import damped_cholesky, dot, one_thread, total
from faqbench.quantization.scale import search_scale

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
    weight, statistic = numbers(1024, 512, seed=3), numbers(512, seed=4).abs()

    def search():
        return search_scale([weight], [GRID], statistic, hessian, [0.0, 0.3, 0.6, 0.9]).alpha

    assert all_equal(with_threads(search))
