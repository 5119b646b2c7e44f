"""Every yaml below conf/ composes against the default, validates, and keeps the house's rules."""

import re
from math import prod

import pytest
import yaml

from faqbench.cli.composing import compose_cells, conf_dir, parse_flags
from faqbench.config import run_id

CHOICES = sorted(
    path.relative_to(conf_dir()).with_suffix("").as_posix()
    for path in conf_dir().glob("*/*.yaml")
    if not path.name.startswith("_")
)
EXPERIMENTS = sorted(path.stem for path in conf_dir().glob("experiment/*.yaml"))
FILES = sorted(path.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*.yaml"))


# It names a checkpoint: see tests/integration/test_foreign.py.
COMPOSABLE = [c for c in CHOICES if not c.startswith("experiment/") and c != "quant/checkpoint"]
COMPOSABLE += [
    path.relative_to(conf_dir()).with_suffix("").as_posix()
    for path in sorted(conf_dir().glob("quant/external/*.yaml"))
]


@pytest.mark.parametrize("choice", COMPOSABLE)
def test_every_choice_composes_and_validates(compose, choice):
    group, _, name = choice.partition("/")
    assert getattr(compose(f"{group}={name}"), group) is not None


@pytest.mark.parametrize("choice", COMPOSABLE)
def test_every_choice_is_named_after_its_file(compose, choice):
    group, _, name = choice.partition("/")
    experiment = compose(f"{group}={name}")
    section = getattr(experiment, group)
    assert getattr(section, "name", getattr(section, "domain", None)) == name.rpartition("/")[2]


# Hydra knows a sweeper by its class alone.
@pytest.mark.parametrize("file", [f for f in FILES if f != "hydra/sweeper/cells.yaml"])
def test_no_yaml_names_a_class_to_make(file):
    assert "_target_" not in (conf_dir() / file).read_text()


@pytest.mark.parametrize("file", [f for f in FILES if not f.startswith("model/")])
def test_every_yaml_says_in_its_first_lines_what_it_is(file):
    assert (conf_dir() / file).read_text().startswith("#")


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("quant/") and not c.endswith("/fp")])
def test_a_preset_changes_stages_and_their_options_only(choice):
    raw = yaml.safe_load((conf_dir() / f"{choice}.yaml").read_text())
    stages = {"rotate", "scale", "clip", "correct", "round", "refine"}
    options = {"search", "preview", "gptq", "gptaq", "qronos", "mse", "correction", "smoothing"}
    options |= {"activations", "rotation", "refinement"}
    if "quant" in raw:  # one that sets knobs too, as long as the user does not turn them
        assert set(raw) <= {"defaults", "quant", "bits", "group_size", "symmetric"}
        raw = raw["quant"]
    assert set(raw) <= {"defaults", "name"} | stages | options


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_value_that_an_experiment_sweeps_composes(compose, name):
    axes = axes_of(name)
    for i in range(max(map(len, axes.values()))):  # the i-th value of every axis at once
        chosen = [f"{key}={values[i % len(values)]}" for key, values in axes.items()]
        experiment = compose(f"experiment={name}", *chosen, "hydra.sweeper.params=null")
        assert experiment.report.name == experiment.tracking.group == name


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_a_study_of_several_cells_and_states_its_cost(name):
    assert prod(len(values) for values in axes_of(name).values()) > 1
    head = [line for line in text_of(name).splitlines() if line.startswith("#")]
    assert head[0] == "# @package _global_"
    assert re.search(r"minutes|hour|day", " ".join(head[1:4]))


@pytest.mark.parametrize(
    "study", ["paper-main", "bias-study", "window-ablation", "sample-size", "composition"]
)
def test_every_study_has_a_quick_and_a_full_size_and_the_full_one_is_larger(study):
    sizes = [prod(len(v) for v in axes_of(f"{study}-{size}").values()) for size in ("quick", "full")]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["bias-study-quick", "sample-size-quick"])
def test_an_experiment_has_the_cells_that_it_says(name):
    (stated,) = re.findall(r"(\d+)\s(?:#\s)?cells", text_of(name))
    cells = compose_cells(parse_flags([f"experiment={name}"])).experiments
    assert len({run_id(e) for e in cells}) == int(stated)


def axes_of(name):
    params = yaml.safe_load(text_of(name))["hydra"]["sweeper"]["params"]
    return {key: str(values).replace(" ", "").split(",") for key, values in params.items()}


def text_of(name):
    return (conf_dir() / f"experiment/{name}.yaml").read_text()
