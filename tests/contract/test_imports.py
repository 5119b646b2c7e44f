"""The light layers start without torch and its kin, in a process of their own."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lm_eval", "wandb", "hydra", "omegaconf")


@pytest.mark.parametrize(
    "module", ["config", "files", "records", "report", "stages", "statistics", "cli.report"]
)
def test_a_light_module_imports_nothing_heavy(module):
    code = f"import sys, faqbench.{module}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1800
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["help"], ["--version"], ["ls", "runs=none"]])
def test_light_commands_import_nothing_heavy(arguments):
    # Hydra is what `help` may load: a verb's docstring is read by importing it.
    code = (
        "import sys; from faqbench.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "print([m for m in ('torch', 'transformers', 'lm_eval', 'wandb') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1800
    )
    assert result.stdout.strip().splitlines()[-1] == "[]"
