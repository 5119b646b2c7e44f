"""`record.json` as other programs read it: DESIGN §7's keys, and no type that they do not expect."""

import json

import pytest

from faqbench import pipeline
from faqbench.config import run_id
from faqbench.stages import PlainProgress, StageCache

KEYS = {
    "schema_version": int,
    "run_id": str,
    "status": str,
    "error": (str, type(None)),
    "config": dict,
    "environment": dict,
    "fingerprints": dict,
    "stages": dict,
    "metrics": list,
    "bits_per_weight": (float, type(None)),
    "peak_memory_bytes": int,
    "gates": list,
    "warnings": list,
}


@pytest.fixture(params=["finished", "failed"])
def raw(request, compose, toy_cell, tmp_path):
    protocols = "evaluation.protocols=[wikitext2-32]"
    chosen = ["model=tiny-llama", "quant=awq", *toy_cell, f"paths.runs={tmp_path}/runs"]
    experiment = compose(*chosen, protocols, "limit=3")
    if request.param == "finished":
        pipeline.run(experiment, cache=StageCache(tmp_path / "c"), progress=PlainProgress())
    else:
        pipeline.write_failure(experiment, "it broke")
    path = experiment.paths.runs / run_id(experiment) / "record.json"

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_keys_of_the_contract_are_there_with_their_types(raw):
    assert {k: isinstance(raw[k], t) for k, t in KEYS.items()} == dict.fromkeys(KEYS, True)
    assert raw["status"] in ("finished", "failed")
    assert (raw["error"] is None) == (raw["status"] == "finished")


def test_metrics_gates_and_stages_have_the_keys_of_the_contract(raw):
    metric = {"task", "name", "value", "stderr", "n", "unit", "higher_is_better"}
    assert all(set(m) >= metric for m in raw["metrics"])
    assert all(set(g) >= {"name", "passed", "detail"} for g in raw["gates"])
    assert all(set(s) >= {"seconds", "cached"} for s in raw["stages"].values())
    assert bool(raw["metrics"]) == bool(raw["gates"]) == (raw["status"] == "finished")


def test_the_configuration_is_nested_as_in_conf_with_nothing_left_to_resolve(raw):
    assert raw["config"]["quant"]["bits"] == raw["config"]["bits"] == 3
    assert "${" not in json.dumps(raw["config"]) and "???" not in json.dumps(raw["config"])
