"""What `dtype=auto` means on machines of all kinds; devices that are not there; memory given back."""

import ctypes
import gc

import psutil
import pytest
import torch

from faqbench import hardware
from faqbench.config import UserError
from faqbench.hardware import dtype_warning, fast_dtype, has_fast_bfloat16, resolve_device
from faqbench.processes import give_back, uncollected

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.fixture
def cpu_with(monkeypatch):
    def make(flags):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)

    return make


@pytest.fixture
def gpu_of(monkeypatch):
    """A CUDA device as torch describes one, where there is none."""

    def make(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda *, including_emulation: capability >= (8, 0)
        )

    return make


@pytest.mark.parametrize(
    ("flags", "dtype", "reason"),
    [
        (AVX2, "float32", "no AVX512-BF16 and no AMX-BF16"),
        ({**AVX2, "avx512_bf16": True}, "bfloat16", "has AVX512-BF16"),
        ({**AVX2, "amx_bf16": True, "avx512_bf16": True}, "bfloat16", "AVX512-BF16 and AMX-BF16"),
        ({"architecture": "arm64", "neon": True, "bf16": True}, "bfloat16", "has BF16"),
        ({"architecture": "arm64", "neon": True, "bf16": False}, "float32", "no BF16"),
    ],
)
def test_a_cpus_flags_say_which_dtype_it_multiplies_fast(cpu_with, flags, dtype, reason):
    cpu_with(flags)
    fast = fast_dtype(CPU)
    assert fast.dtype == dtype and reason in fast.reason and fast.is_known
    assert has_fast_bfloat16(CPU) == (dtype == "bfloat16")


def test_a_cpu_without_flags_gets_float32_and_that_is_said(cpu_with):
    cpu_with({"architecture": "riscv64"})
    fast = fast_dtype(CPU)
    assert fast.dtype == "float32" and not fast.is_known and "does not say" in fast.reason


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16")]
)
def test_a_gpus_compute_capability_says_which_dtype_it_multiplies_fast(gpu_of, capability, dtype):
    gpu_of(capability)
    fast = fast_dtype(CUDA)
    assert fast.dtype == dtype and fast.is_known
    assert f"{capability[0]}.{capability[1]}" in fast.reason


def test_a_gpu_of_another_machine_is_taken_for_a_recent_one_and_that_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fast = fast_dtype(CUDA)
    assert fast.dtype == "bfloat16" and not fast.is_known and "no CUDA device is here" in fast.reason


def test_a_device_that_nobody_knows_gets_float32_and_that_is_said():
    fast = fast_dtype(torch.device("meta"))
    assert fast.dtype == "float32" and not fast.is_known


def test_an_emulated_dtype_is_a_warning_with_what_it_costs(cpu_with, monkeypatch):
    cpu_with(AVX2)
    monkeypatch.setattr(hardware, "_slowdown", lambda device, dtype: 7.96)
    for dtype in ("bfloat16", "float16"):
        text = dtype_warning(CPU, dtype)
        assert text.startswith(f"dtype={dtype} is emulated on this CPU")
        assert "about 8 times as long as in float32" in text and "no AVX512-BF16" in text


def test_what_a_dtype_costs_is_measured_against_the_fast_one(cpu_with, monkeypatch):
    cpu_with({**AVX2, "architecture": "made up for this test"})
    seconds = {torch.float16: 3.0, torch.float32: 0.5}
    monkeypatch.setattr(hardware, "_seconds", lambda x, clock: seconds[x.dtype])
    assert hardware._slowdown.__wrapped__(CPU, "float16") == 6.0


@pytest.mark.parametrize(
    ("flags", "dtype"), [(AVX2, "float32"), ({**AVX2, "avx512_bf16": True}, "bfloat16")]
)
def test_the_dtype_that_auto_means_is_no_warning(cpu_with, flags, dtype):
    cpu_with(flags)
    assert dtype_warning(CPU, dtype) is None


def test_a_dtype_that_a_device_does_not_multiply_is_refused_in_one_sentence(cpu_with, monkeypatch):
    def refuse(x):
        raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'\nmore")

    cpu_with(AVX2)
    monkeypatch.setattr(hardware, "_product", refuse)
    with pytest.raises(UserError, match=r"^dtype=float16 cannot be used on cpu: [^\n]* float32 here\.$"):
        dtype_warning(CPU, "float16")


def test_auto_is_a_device_that_this_machine_has():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("device", ["cpuu", "cuda:99", "xpu", "meta:x"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(device):
    with pytest.raises(UserError, match=rf"^device={device} cannot be used here: [^\n]*\.$"):
        resolve_device(device)


def test_the_collector_pauses_inside_and_goes_on_after_it_even_after_an_error():
    with pytest.raises(KeyError), uncollected():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_what_is_free_between_other_pieces_is_given_back():
    process = psutil.Process()
    pieces = [b"x" * (64_000 + i) for i in range(3_000)]
    pieces = pieces[::100]  # what is kept lies between what is not
    before = process.memory_info().rss
    give_back()
    assert before - process.memory_info().rss > 100_000_000 and len(pieces) == 30
