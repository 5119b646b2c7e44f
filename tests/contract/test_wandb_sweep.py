"""The ready W&B sweep: what its agent would type composes into cells."""

import pytest
import yaml

from faqbench.cli.composing import compose_cells, conf_dir, parse_flags

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
