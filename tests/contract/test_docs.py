"""The README and the docstrings name everything that a user can type."""

import importlib
import re
from pathlib import Path

import pytest

from faqbench.cli import VERBS
from faqbench.cli.composing import conf_dir

README = Path(__file__).parents[2] / "README.md"
PRESETS = sorted(p.stem for p in conf_dir().glob("quant/*.yaml") if not p.name.startswith("_"))
PLUG_INS = ["models", "quantization", "corpora", "evaluation", "tracking", "report.figures"]


def named(word):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", README.read_text()) is not None


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_a_first_line_that_ends_as_a_sentence(verb):
    module = importlib.import_module(VERBS[verb])
    first = (module.__doc__ or "").splitlines()[0]
    assert len(first) > 20 and first.endswith(".")
    assert callable(module.run)


@pytest.mark.parametrize("verb", list(VERBS))
def test_the_readme_mentions_every_verb(verb):
    assert named(verb)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_readme_mentions_every_preset(preset):
    assert named(preset)


def test_the_readme_is_short():
    assert 0 < len(README.read_text().splitlines()) < 220


@pytest.mark.parametrize("package", PLUG_INS)
def test_every_plug_in_point_says_how_to_add_one(package):
    doc = importlib.import_module(f"faqbench.{package}").__doc__ or ""
    assert re.search(r"\b[Aa]dd(ing)?\b", doc)
