"""Every preset of quant/ runs from calibration to record on a tiny model."""

import pytest

from faqbench import pipeline
from faqbench.cli.composing import conf_dir
from faqbench.config import run_id
from faqbench.records import read_run
from faqbench.stages import PlainProgress, StageCache

PRESETS = sorted(p.stem for p in conf_dir().glob("quant/*.yaml") if not p.name.startswith("_"))
DESIGN = {
    "fp", "rtn", "awq", "faq", "gptq", "qep", "qep-gptq", "qep-awq", "qep-faq", "loaq", "loaq-gptq",
}  # fmt: skip


@pytest.fixture
def run(compose, toy_cell, tmp_path):
    def make(*overrides):
        experiment = compose("model=tiny-llama", *toy_cell, *overrides)
        cache = StageCache(tmp_path / "cache")
        return experiment, pipeline.run(experiment, cache=cache, progress=PlainProgress())

    return make


def test_the_presets_of_the_design_are_all_there():
    assert set(PRESETS) >= DESIGN


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_and_passes_its_gates(run, preset):
    experiment, data = run(f"quant={preset}", "evaluation.protocols=[wikitext2-32]", "limit=4")
    assert data.record.status == "finished"
    assert [g for g in data.record.gates if not g.passed] == []
    assert read_run(experiment.paths.runs / run_id(experiment)).record == data.record


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"fp"}))
@pytest.mark.parametrize("grid", ["symmetric=true", "group_size=-1", "bits=2", "bits=8"])
def test_every_preset_runs_on_every_kind_of_grid(run, preset, grid):
    _, data = run(f"quant={preset}", grid)
    unknown = set(data.layers.loc[data.layers["relative_error"].isna(), "role"])
    roles = {"qkv", "o", "gate_up", "down"}
    assert len(data.layers) == 28
    assert unknown == {"rtn": roles, "qep": {"down"}}.get(preset, set())
    assert data.record.bits_per_weight >= data.layers["bits"].min()


def test_eight_bits_are_closer_to_full_precision_than_two(run):
    for preset in sorted(set(PRESETS) - {"fp", "rtn"}):
        _, two = run(f"quant={preset}", "bits=2")
        _, eight = run(f"quant={preset}", "bits=8")
        assert eight.layers["relative_error"].mean() < two.layers["relative_error"].mean() / 10
