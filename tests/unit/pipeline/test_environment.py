import getpass
import socket
from pathlib import Path

import torch

from faqbench.pipeline.environment import describe_environment, peak_memory_bytes, start_peak_memory

CPU = torch.device("cpu")


def test_versions_and_hardware_are_described():
    found = describe_environment(CPU)
    assert found["packages"]["torch"] == torch.__version__
    assert found["n_cores"] >= 1 and found["memory_bytes"] > 2**28


def test_nothing_names_a_host_or_a_home():
    values = [str(v) for v in describe_environment(CPU).values()]
    assert socket.gethostname() not in values and getpass.getuser() not in values
    assert not any(str(Path.home()) in v for v in values)


def test_peak_memory_grows_with_what_is_allocated():
    start_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    block = torch.ones(2**25)
    assert peak_memory_bytes(CPU) > before > 2**20
    assert block.sum() == 2**25
