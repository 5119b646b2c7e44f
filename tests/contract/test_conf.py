"""Every yaml below conf/ composes and keeps the house's rules: scenarios, W&B's sweep."""

import dataclasses
import re
import shlex
from math import prod

import pytest
import yaml
from toy_runs import write_toy_run

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.config import run_id
from faqbench.config.section import conf_dir
from faqbench.models import load_tokenizer
from faqbench.pipeline.calibrating import calibration_set
from faqbench.report.facts import repeat_command
from faqbench.stages import PlainProgress, StageCache

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


SWEEP = yaml.safe_load((conf_dir() / "wandb_sweep.yaml").read_text())


def typed(choice):
    """Return the words that W&B's own agent makes of a choice of parameters."""
    from wandb.sdk.launch.sweeps import utils

    words = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in choice.items()}})
    return words["args_no_hyphens"]


def choices(pick):
    found = {}
    for name, parameter in SWEEP["parameters"].items():
        ends = parameter.get("values") or [parameter.get("min"), parameter.get("max")]
        found[name] = parameter.get("value", ends[pick])
    return found


@pytest.mark.parametrize("pick", [0, -1])
def test_every_choice_of_the_agent_is_a_cell(pick):
    (experiment,) = compose_cells(parse_flags(typed(choices(pick)))).experiments
    chosen = choices(pick)
    assert experiment.quant.name == "faq" and experiment.quant.preview.window == chosen["window"]
    assert experiment.quant.preview.gamma == chosen["gamma"] and experiment.seed == chosen["seed"]


def test_the_command_hands_the_choice_to_faqbench_without_hyphens():
    assert SWEEP["command"][-4:] == ["${interpreter}", "-m", "${program}", "${args_no_hyphens}"]
    assert SWEEP["program"] == "faqbench"


def test_the_objective_is_a_number_that_runs_log():
    (experiment,) = compose_cells(parse_flags(typed(choices(0)))).experiments
    _, task, metric = SWEEP["metric"]["name"].split("/")
    assert task in experiment.evaluation.protocols and metric == "perplexity"
    assert SWEEP["metric"]["goal"] == "minimize"


SCENARIOS = sorted(p.stem for p in conf_dir().glob("scenario/*.yaml"))
ISSUE = {
    "matched", "single-domain", "code-only", "math-only", "one-language", "mixture", "few-samples",
    "short-documents", "duplicated", "length-skewed", "shuffled-tokens", "random-tokens",
    "rare-token-heavy", "noise-injected", "label-leak",
}  # fmt: skip


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second toy file, for the scenarios that have another domain: no asset is read."""
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("\n\n".join(f"def function_{i}(x): return x + {i}" for i in range(60)))
    return path


@pytest.fixture
def run(run_cell, other):
    def make(scenario, quant):
        raw = yaml.safe_load((conf_dir() / f"scenario/{scenario}.yaml").read_text())
        toy = [f"scenario.domain={other}"] if raw.get("domain") else []
        chosen = ["model=tiny-llama", *toy, f"scenario={scenario}", f"quant={quant}"]
        return run_cell(*chosen, "evaluation.protocols=[wikitext2-32]", "limit=4")[1].record

    return make


def test_the_scenarios_of_the_issue_are_all_there():
    assert set(SCENARIOS) >= ISSUE


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_runs_and_its_record_says_so(run, scenario):
    record = run(scenario, "awq")
    failed = [gate.name for gate in record.gates if not gate.passed]
    assert failed == (["unseen_text"] if scenario == "label-leak" else [])
    found = record.extra["calibration"]
    assert found["scenario"] == scenario
    assert set(found["bias_distance"]["activation_shift"]) == {"qkv", "o", "gate_up", "down"}


@pytest.mark.parametrize("quant", ["gptq", "qep-faq", "loaq", "faq"])
@pytest.mark.parametrize("scenario", ["mixture", "random-tokens", "label-leak", "duplicated"])
def test_scenarios_compose_with_every_kind_of_method(run, scenario, quant):
    assert run(scenario, quant).extra["calibration"]["scenario"] == scenario


@pytest.mark.packaged
def test_every_scenario_draws_other_tokens_of_real_text(compose, tmp_path):
    cache, progress = StageCache(tmp_path / "cache"), PlainProgress()
    tokenizer = load_tokenizer(compose("quant=awq").model, progress)
    found = {}
    for scenario in SCENARIOS:
        experiment = compose("quant=awq", f"scenario={scenario}")
        drawn, _ = calibration_set(experiment, tokenizer, cache, progress)
        assert drawn.tokens.shape == (experiment.n_calibration_samples, 512)
        found[scenario] = drawn.fingerprint
    assert len(set(found.values())) == len(SCENARIOS)


@pytest.mark.parametrize(
    "overrides",
    [
        ["quant=fp"],
        ["quant=rtn", "bits=4", "group_size=-1", "symmetric=true", "quant.symmetric_grid=half_range"],
        ["quant=faq", "window=2", "gamma=0.9", "quant.search.n_grid=5", "seed=3", "limit=10"],
        ["quant=faq-plus", "scenario=code-only", "calibration.n_samples=16", "evaluation.tasks=[]"],
        ["quant=gptq", "calibration.domain=books", "evaluation.protocols=[heldout-medicine-64]"],
        ["quant=awq", "calibration.mixture={wiki: 0.7, code: 0.3}", "evaluation=paper", "group_size=32"],
        ["quant=w4a4-quarot", "quant.activations.kv_bits=4", "quant.skip=['*.down_proj']"],
        ["quant=signround", "quant.refinement.steps=7", "dtype=bfloat16", "evaluation.n_windows=7"],
        ["quant=loaq-awq", "scenario=shuffled-tokens", "evaluation.num_fewshot=2"],
    ],
    ids=lambda words: words[0],
)
def test_the_command_that_repeats_a_run_composes_the_same_run(overrides, tmp_path):
    def composed(words):
        (experiment,) = compose_cells(parse_flags(tuple(words))).experiments
        return experiment

    asked = composed(["model=tiny-llama", "dtype=float32", *overrides])
    record = dataclasses.replace(write_toy_run(tmp_path, "rtn"), config=asked.model_dump(mode="json"))
    words = shlex.split(repeat_command(record))
    assert words[:3] == ["python", "-m", "faqbench"]
    again = composed(words[3:])
    assert run_id(again) == run_id(asked)
    assert len(words) < 24
