"""Every scenario composes with every kind of method, and changes what it says."""

import pytest
import yaml

from faqbench.cli.composing import conf_dir
from faqbench.models import load_tokenizer
from faqbench.pipeline.calibrating import calibration_set
from faqbench.stages import PlainProgress, StageCache

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
