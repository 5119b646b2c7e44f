"""README and docstrings name everything that a user can type; the light layers start without torch."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from faqbench.cli import VERBS, verb_function
from faqbench.config.section import conf_dir

README = Path(__file__).parents[2] / "README.md"
PRESETS = sorted(p.stem for p in conf_dir().glob("quant/*.yaml") if not p.name.startswith("_"))
PLUG_INS = ["models", "quantization", "corpora", "evaluation", "tracking", "report.figures"]


def named(word):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", README.read_text()) is not None


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_a_first_line_that_ends_as_a_sentence(verb):
    first = (verb_function(verb).__doc__ or "").splitlines()[0]
    assert len(first) > 20 and first.endswith(".")


@pytest.mark.parametrize("verb", list(VERBS))
def test_the_readme_mentions_every_verb(verb):
    assert named(verb)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_readme_mentions_every_preset(preset):
    assert named(preset)


def test_the_readme_is_short():
    assert 0 < len(README.read_text().splitlines()) < 200


@pytest.mark.parametrize("package", PLUG_INS)
def test_every_plug_in_point_says_how_to_add_one(package):
    doc = importlib.import_module(f"faqbench.{package}").__doc__ or ""
    assert re.search(r"\b[Aa]dd(ing)?\b", doc)


HEAVY = ("torch", "transformers", "lm_eval", "wandb", "hydra", "omegaconf")


@pytest.mark.parametrize(
    "module", ["config", "files", "records", "report", "stages", "statistics", "cli.results"]
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
