"""Every yaml below conf/ composes against the default, validates, and keeps the house's rules."""

import pytest
import yaml

from faqbench.cli.composing import conf_dir

CHOICES = sorted(
    path.relative_to(conf_dir()).with_suffix("").as_posix()
    for path in conf_dir().glob("*/*.yaml")
    if not path.name.startswith("_")
)
FILES = sorted(path.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*.yaml"))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_validates(compose, choice):
    group, _, name = choice.rpartition("/")
    experiments = compose(f"{group}={name}")
    assert experiments


@pytest.mark.parametrize("choice", [c for c in CHOICES if not c.startswith("experiment/")])
def test_every_choice_is_named_after_its_file(compose, choice):
    group, _, name = choice.rpartition("/")
    (experiment,) = compose(f"{group}={name}")
    section = getattr(experiment, group)
    assert getattr(section, "name", getattr(section, "domain", None)) == name


@pytest.mark.parametrize("file", FILES)
def test_no_yaml_names_a_class_to_make(file):
    assert "_target_" not in (conf_dir() / file).read_text()


@pytest.mark.parametrize("file", [f for f in FILES if not f.startswith("model/")])
def test_every_yaml_says_in_its_first_lines_what_it_is(file):
    assert (conf_dir() / file).read_text().startswith("#")


@pytest.mark.parametrize(
    "choice", [c for c in CHOICES if c.startswith("quant/") and not c.endswith("/fp")]
)
def test_a_preset_changes_stages_and_their_options_only(choice):
    raw = yaml.safe_load((conf_dir() / f"{choice}.yaml").read_text())
    stages = {"scale", "clip", "correct", "round"}
    options = {"search", "preview", "gptq", "correction"}
    assert set(raw) <= {"defaults", "name"} | stages | options


def test_every_experiment_is_a_study_of_several_cells(compose):
    for choice in CHOICES:
        if choice.startswith("experiment/"):
            assert len(compose(f"experiment={choice.rpartition('/')[2]}")) > 1
